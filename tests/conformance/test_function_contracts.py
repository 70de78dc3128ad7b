"""What every function contract holds, with a real function host and a real agent; medes.runtimes.contracts.contract says it
in words.

A contract of one's own is held to it by a case of its own: see tests/conformance/function_contract_cases.py.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from medes import plugins
from medes.errors import (
    BusyError,
    DeadlineExceededError,
    FunctionError,
    InvalidArgumentError,
    LimitExceededError,
    ProcessGoneError,
)
from medes.plugins import Kind
from medes.runtimes import manifest
from medes.runtimes.contracts.contract import HandlerError, InstanceFailedError
from medes.runtimes.host import host as host_module
from medes.runtimes.host.control import ControlServer
from medes.runtimes.host.host import FunctionHost
from medes.runtimes.host.hosted_instance import HostedInstance
from medes.types import SandboxState as S
from tests.conformance.function_contract_cases import ContractCase, cases
from tests.support.cluster import AgentProcess, wait_until
from tests.support.distribution import install

Spec = manifest.FunctionSpec
MakeSpec = Callable[..., Spec]
HOOKS_OF_A_DEDUP = ["before_snapshot", "after_restore"]


@pytest.fixture(params=cases(), ids=lambda case: case.contract)
def case(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ContractCase:
    made: ContractCase = request.param()
    if made.module:
        module = f"throw_away_{made.contract}"
        points = f"[medes.function_contracts]\n{made.contract} = {module}:{made.entry}\n"
        install(tmp_path / "site", monkeypatch, {module: made.module}, points)
    if lacks := plugins.load(Kind.FUNCTION_CONTRACT, made.contract).missing():
        pytest.skip(f"it cannot run here: {'; '.join(lacks)}")
    return made


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentProcess]:
    """One for all tests: each leaves it without a sandbox."""
    made = AgentProcess(tmp_path_factory.mktemp("agent"), "n0", "")
    try:
        yield made.start()
    finally:
        made.clean()


@pytest.fixture
async def host(agent: AgentProcess, case: ContractCase) -> AsyncIterator[FunctionHost]:
    """Leaves neither process, file nor sandbox."""
    alive: set[int] = set()

    def on_process(pid: int, lives: bool) -> None:
        (alive.add if lives else alive.discard)(pid)

    with tempfile.TemporaryDirectory(prefix="medes-") as folder:
        path = Path(folder) / "host.sock"
        host = FunctionHost([agent.address], Path(folder), hook_address=f"unix:{path}", on_process=on_process)
        server = ControlServer(host, path)
        async with host:
            await server.start()
            yield host
            await server.close()
        assert alive == set()
        assert sorted(file.name for file in Path(folder).rglob("*") if file.suffix != ".log") == [
            "logs",
            "run",
        ]
    with agent.client() as client:
        wait_until(lambda: client.list() == [], "the agent has seen that they ended")


@pytest.fixture
def make_spec(case: ContractCase, tmp_path: Path) -> MakeSpec:
    """make_spec(idempotent=False, loads=True, handler=…, options=TOML)."""

    def make(*, idempotent: bool = False, loads: bool = True, handler: str = "", options: str = "{}") -> Spec:
        folder = tmp_path / "function"
        folder.mkdir(exist_ok=True)
        case.write(folder, loads=loads)
        (folder / "function.toml").write_text(
            f'name = "probe"\nhandler = "{handler or case.handler}"\ncontract = "{case.contract}"\n'
            f'idempotent = {json.dumps(idempotent)}\nenv = {{ CASE = "of the manifest" }}\noptions = {options}\n'
        )
        return manifest.load(folder)

    return make


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 (the condition belongs to the code under test)
            await asyncio.sleep(0.01)


def gone(instance: HostedInstance) -> bool:
    return not Path(f"/proc/{instance.pid}").exists()


# --- the manifest ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("wrong", ["handler", "options"])
def test_a_wrong_manifest_is_refused_before_anything_starts(
    case: ContractCase, make_spec: MakeSpec, wrong: str
) -> None:
    given = {"handler": case.bad_handler} if wrong == "handler" else {"options": "{ no-such-option = 1 }"}
    with pytest.raises(InvalidArgumentError) as caught:
        make_spec(**given)
    assert "function.toml" in str(caught.value)


# --- requests ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "event",
    [{}, {"text": 'ä "\\\n\r\u2028\0 😀', "deep": [[{"a": None}], 1.5, -1, True, 1 << 60]}, {"text": "x" * 1_000_000}],
    ids=["empty", "odd", "large"],
)  # fmt: skip
async def test_an_event_arrives_as_it_was_sent(
    host: FunctionHost, make_spec: MakeSpec, event: dict[str, Any]
) -> None:
    await host.deploy(make_spec())
    for call in (1, 2):
        answer = await host.invoke("probe", event)
        assert answer.start == "warm"
        assert answer.result == {"event": event, "calls": call, "seen": [], "env": "of the manifest"}


async def test_an_error_of_the_function_leaves_the_instance(host: FunctionHost, make_spec: MakeSpec) -> None:
    (one,) = await host.deploy(make_spec())
    with pytest.raises(HandlerError, match="no such luck"):
        await host.invoke("probe", {"raise": "no such luck"})
    answer = await host.invoke("probe")
    assert (answer.instance_id, answer.result["calls"]) == (one.instance_id, 1)


async def test_an_event_that_is_too_large_is_refused_before_it_is_sent(
    host: FunctionHost, make_spec: MakeSpec, case: ContractCase, tmp_path: Path
) -> None:
    if not case.event_bytes_max:
        pytest.skip("it has no bound of its own")
    (one,) = await host.deploy(make_spec())
    runs = tmp_path / "runs"
    with pytest.raises(LimitExceededError):
        await host.invoke("probe", {"note": str(runs), "text": "x" * (case.event_bytes_max + (1 << 20))})
    answer = await host.invoke("probe")
    assert (answer.instance_id, answer.result["calls"], runs.exists()) == (one.instance_id, 1, False)


@pytest.mark.parametrize("idempotent", [True, False])
async def test_a_crash_in_mid_request_is_told_from_one_before_it(
    host: FunctionHost, make_spec: MakeSpec, tmp_path: Path, idempotent: bool
) -> None:
    (one,) = await host.deploy(make_spec(idempotent=idempotent))
    runs = tmp_path / "runs"
    with pytest.raises(ProcessGoneError if idempotent else InstanceFailedError):
        await host.invoke("probe", {"note": str(runs), "die": True})
    assert runs.read_text() == "run\n" * (host_module.STARTS_MAX if idempotent else 1)
    await until(lambda: gone(one))
    assert (await host.invoke("probe")).start == "cold"


async def test_the_time_limit_ends_the_instance(host: FunctionHost, make_spec: MakeSpec) -> None:
    (one,) = await host.deploy(make_spec())
    with pytest.raises(DeadlineExceededError):
        await host.invoke("probe", {"sleep": 600}, timeout_s=0.3)
    await until(lambda: gone(one))
    assert (await host.invoke("probe")).start == "cold"


async def test_a_request_that_nobody_waits_for_answers_no_other(
    host: FunctionHost, make_spec: MakeSpec, tmp_path: Path
) -> None:
    await host.deploy(make_spec())
    runs = tmp_path / "runs"
    waiting = asyncio.create_task(host.invoke("probe", {"note": str(runs), "sleep": 2}))
    await until(runs.exists)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    answers = await asyncio.gather(*(host.invoke("probe", {"n": n}) for n in range(3)))
    assert [answer.result["event"] for answer in answers] == [{"n": n} for n in range(3)]


async def test_requests_side_by_side_are_queued_and_refused(
    host: FunctionHost, make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(host_module, "INSTANCES_PER_FUNCTION_MAX", 2)
    await host.deploy(make_spec(), 2)
    answers = await asyncio.gather(*(host.invoke("probe", {"n": n, "sleep": 0.05}) for n in range(8)))
    assert [answer.result["event"]["n"] for answer in answers] == list(range(8))
    assert {answer.start for answer in answers} == {"warm"}
    taken = [
        asyncio.create_task(host.invoke("probe", {"note": str(tmp_path / f"{n}"), "sleep": 600}))
        for n in range(2)
    ]
    await until(lambda: (tmp_path / "0").exists() and (tmp_path / "1").exists())
    with pytest.raises(BusyError):
        await host.invoke("probe", timeout_s=0.2)
    for task in taken:
        task.cancel()
    await asyncio.gather(*taken, return_exceptions=True)


# --- dedup and restore -------------------------------------------------------------------------------------
async def test_hooks_run_around_a_dedup_and_its_state_is_kept(
    host: FunctionHost, make_spec: MakeSpec, case: ContractCase
) -> None:
    (one,) = await host.deploy(make_spec())
    await host.invoke("probe")
    for times in (1, 2):
        await until(lambda: not one.busy)
        await host.dedup(one)
        assert one.state is S.DEDUP
        await asyncio.sleep(0.3)  # whatever a contract does beside the calls must not wake it
        assert (await host.nodes["n0"].get(one)).state is S.DEDUP
        answer = await host.invoke("probe", {"n": times})
        assert (answer.start, answer.instance_id) == ("dedup", one.instance_id)
        assert answer.result["calls"] == times + 1
        assert answer.result["seen"] == (HOOKS_OF_A_DEDUP * times if case.hooks else [])


async def test_hooks_that_fail_fail_neither_op(
    host: FunctionHost, make_spec: MakeSpec, case: ContractCase
) -> None:
    if not case.hooks:
        pytest.skip("it has no hooks")
    (one,) = await host.deploy(make_spec())
    await host.invoke("probe", {"spoil": True})
    with pytest.raises(HandlerError, match="spoilt"):
        await host.run_hooks(one.instance_id, "after_restore")
    await until(lambda: not one.busy)
    await host.dedup(one)
    answer = await host.invoke("probe")
    assert (answer.start, answer.result["calls"], answer.result["seen"]) == ("dedup", 2, [])


# --- the end -----------------------------------------------------------------------------------------------
async def test_a_function_that_does_not_load_leaves_nothing(host: FunctionHost, make_spec: MakeSpec) -> None:
    with pytest.raises(FunctionError, match="nothing_of_this_name"):
        await host.deploy(make_spec(loads=False), 2)
    assert host.functions == {}


@pytest.mark.parametrize("asleep", [False, True])
async def test_an_instance_that_was_removed_leaves_nothing(
    host: FunctionHost, make_spec: MakeSpec, asleep: bool
) -> None:
    instances = await host.deploy(make_spec(), 2)
    if asleep:
        await host.dedup(instances[0])
    await host.remove("probe")
    assert all(gone(instance) for instance in instances)


async def test_an_instance_that_ends_by_itself_is_dropped(host: FunctionHost, make_spec: MakeSpec) -> None:
    (one,) = await host.deploy(make_spec())
    assert one._spawned is not None
    one._spawned.process.kill()
    await until(lambda: host.functions["probe"].instances == [])
    assert (await host.invoke("probe")).start == "cold"
