"""The function host against an agent in memory: scheduling, waking, losses, hooks, and its control socket."""

import asyncio
import contextlib
import dataclasses
import json
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from medes.errors import (
    AlreadyExistsError,
    BusyError,
    DeadlineExceededError,
    HostUnreachableError,
    InvalidArgumentError,
    LostError,
    NotFoundError,
    PeerUnreachableError,
    ProcessGoneError,
)
from medes.runtimes import manifest
from medes.runtimes.contracts.contract import HandlerError, InstanceFailedError
from medes.runtimes.host import control, nodes
from medes.runtimes.host.host import FunctionHost
from medes.types import DedupResult, NodeStatus, PurgeCause, RestoreReport, Sandbox, SandboxEvent
from medes.types import SandboxState as S

CODE = """
import os, time
from medes.runtimes.instance.hooks import register_after_restore
woken = []
register_after_restore(woken.append, 1)
def handler(event, context):
    if event.get("note"):
        with open(event["note"], "a") as file:
            print("run", file=file)
    if event.get("break"):
        os.closerange(3, 256)
    if event.get("die"):
        os._exit(1)
    if event.get("raise"):
        raise ValueError("no")
    time.sleep(event.get("sleep", 0))
    return {"pid": os.getpid(), "woken": len(woken), "event": event}
"""


class FakeAgent:
    """An agent in memory, behind AsyncMedesClient's interface: states and calls, no memory work."""

    def __init__(self, address: str) -> None:
        self.node_id = address.removeprefix("fake:")
        self.sandboxes: dict[str, Sandbox] = {}
        self.calls: list[str] = []
        self.events: asyncio.Queue[SandboxEvent] = asyncio.Queue()
        self.hooks: dict[str, str] = {}
        self.down = False

    def _move(self, sandbox_id: str, state: S) -> Sandbox:
        if self.down:
            raise PeerUnreachableError("down", object=self.node_id)
        if sandbox_id not in self.sandboxes:
            raise NotFoundError("no such sandbox", object=sandbox_id)
        self.sandboxes[sandbox_id] = dataclasses.replace(self.sandboxes[sandbox_id], state=state)
        return self.sandboxes[sandbox_id]

    async def node(self) -> NodeStatus:
        return NodeStatus(self.node_id)

    async def register(self, function: str, *, pids, sandbox_id, hook_address, **rest) -> Sandbox:
        self.calls.append(f"register {sandbox_id}")
        self.hooks[sandbox_id] = hook_address
        self.sandboxes[sandbox_id] = Sandbox(sandbox_id, function, state=S.WARM, pids=tuple(pids))
        return self.sandboxes[sandbox_id]

    async def begin(self, sandbox_id: str) -> Sandbox:
        self.calls.append(f"begin {sandbox_id}")
        now = self.sandboxes.get(sandbox_id)
        if now is not None and now.state is S.DEDUP and not self.down:
            return await self._restore(sandbox_id)
        return self._move(sandbox_id, now.state if now and now.state is S.LOST else S.RUNNING)

    async def end(self, sandbox_id: str) -> Sandbox:
        self.calls.append(f"end {sandbox_id}")
        return self._move(sandbox_id, S.WARM)

    async def dedup(self, sandbox_id: str, *, make_base: bool = False) -> DedupResult:
        return DedupResult(self._move(sandbox_id, S.DEDUP))

    async def _restore(self, sandbox_id: str) -> Sandbox:
        self.calls.append(f"restore {sandbox_id}")
        if self.hooks[sandbox_id]:
            path = Path(self.hooks[sandbox_id].removeprefix("unix:"))
            await control.call(path, "POST", "/hooks/after-restore", {"sandbox_id": sandbox_id})
        sandbox = self._move(sandbox_id, S.RESTORING)
        restored = dataclasses.replace(
            sandbox, restore_count=sandbox.restore_count + 1, last_restore=RestoreReport(was_dedup=True)
        )
        self.sandboxes[sandbox_id] = restored
        return restored

    async def get(self, sandbox_id: str) -> Sandbox:
        return self.sandboxes[sandbox_id]

    async def list(self) -> list[Sandbox]:
        return list(self.sandboxes.values())

    async def purge(self, sandbox_id: str) -> None:
        self.sandboxes.pop(sandbox_id, None)

    async def watch(self) -> AsyncIterator[SandboxEvent]:
        while True:
            yield await self.events.get()

    async def close(self) -> None:
        pass

    def report(self, sandbox_id: str, state: S, cause: PurgeCause = PurgeCause.UNSPECIFIED) -> None:
        """As the agent's Watch would."""
        sandbox = self._move(sandbox_id, state)
        self.events.put_nowait(SandboxEvent(sandbox, S.WARM, "test", 1, cause))


@pytest.fixture
def spec(tmp_path: Path) -> manifest.FunctionSpec:
    folder = tmp_path / "probe"
    folder.mkdir()
    (folder / "code.py").write_text(CODE)
    (folder / "function.toml").write_text('name = "probe"\nhandler = "code:handler"\nidempotent = true\n')
    return manifest.load(folder)


@pytest.fixture
def agents(monkeypatch: pytest.MonkeyPatch) -> dict[str, FakeAgent]:
    made: dict[str, FakeAgent] = {}

    def make(address: str) -> FakeAgent:
        return made.setdefault(address, FakeAgent(address))

    monkeypatch.setattr(nodes, "AsyncMedesClient", make)
    return made


@pytest.fixture
async def host(agents: dict[str, FakeAgent], tmp_path: Path):
    path = tmp_path / "host.sock"
    host = FunctionHost(["fake:a", "fake:b"], tmp_path / "run", hook_address=f"unix:{path}")
    server = control.ControlServer(host, path)
    async with host:
        await server.start()
        yield host
        await server.close()
    assert not path.exists()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 (the condition belongs to the code under test)
            await asyncio.sleep(0.005)


async def settled(host: FunctionHost) -> None:
    await until(lambda: not any(i.busy for f in host.functions.values() for i in f.instances))


async def test_instances_spread_and_requests_take_turns(host: FunctionHost, spec, agents) -> None:
    await host.deploy(spec, 3)
    assert [i.node_id for i in host.functions["probe"].instances] == ["a", "b", "a"]
    first = await host.invoke("probe", {"n": 1})
    assert (first.start, first.result["event"], first.restore) == ("warm", {"n": 1}, None)
    pids = {
        r.result["pid"]
        for r in await asyncio.gather(*(host.invoke("probe", {"sleep": 0.1}) for _ in range(3)))
    }
    assert len(pids) == 3
    await settled(host)
    calls = agents["fake:a"].calls + agents["fake:b"].calls
    assert sum(c.startswith("begin") for c in calls) == sum(c.startswith("end") for c in calls) == 4


async def test_warm_then_dedup_then_cold(host: FunctionHost, spec, agents) -> None:
    one, two = await host.deploy(spec, 2)
    await host.dedup(one)
    assert one.state is S.DEDUP
    results = await asyncio.gather(*(host.invoke("probe", {"sleep": 0.2}) for _ in range(3)))
    assert sorted((r.start, r.instance_id) for r in results) == [
        ("cold", "probe-3"), ("dedup", one.instance_id), ("warm", two.instance_id),
    ]  # fmt: skip
    woken = next(r for r in results if r.start == "dedup")
    assert woken.result["woken"] == 1  # the after-restore hook ran before the handler
    assert next(r for r in results if r.start == "warm").result["woken"] == 0
    assert agents["fake:a"].calls.count(f"restore {one.instance_id}") == 1


async def test_a_lost_sandbox_is_replaced(host: FunctionHost, spec, agents) -> None:
    (one,) = await host.deploy(spec, 1)
    await host.dedup(one)
    agents["fake:a"].sandboxes[one.instance_id] = Sandbox(one.instance_id, state=S.LOST)
    with pytest.raises(LostError):
        await host.invoke("probe", instance_id=one.instance_id)
    assert one.exited
    answer = await host.invoke("probe", {"n": 2})
    assert answer.start == "cold"
    assert host.functions["probe"].lost == 1


async def test_loss_and_purge_reported_by_watch_end_the_instance(host: FunctionHost, spec, agents) -> None:
    one, two = await host.deploy(spec, 2)
    agents["fake:a"].report(one.instance_id, S.LOST)
    agents["fake:b"].report(two.instance_id, S.PURGED)
    await until(lambda: not host.functions["probe"].instances)
    assert one.exited and two.exited
    assert (await host.invoke("probe")).start == "cold"


async def test_failures_of_the_function(host: FunctionHost, spec, agents) -> None:
    (one,) = await host.deploy(spec, 1)
    with pytest.raises(HandlerError, match="ValueError: no"):
        await host.invoke("probe", {"raise": True})
    assert (await host.invoke("probe", instance_id=one.instance_id)).start == "warm"
    with pytest.raises(ProcessGoneError):
        await host.invoke("probe", {"die": True}, instance_id=one.instance_id)
    with pytest.raises(NotFoundError):
        await host.invoke("probe", instance_id=one.instance_id)
    await host.invoke("probe")
    with pytest.raises(DeadlineExceededError):
        await host.invoke("probe", {"sleep": 30}, timeout_s=0.2)
    await settled(host)
    assert host.functions["probe"].instances == []


@pytest.mark.parametrize("idempotent", [True, False])
@pytest.mark.parametrize("how", ["die", "break"])
async def test_a_request_that_an_instance_was_given_is_given_to_no_other(
    host: FunctionHost, spec, agents, tmp_path: Path, idempotent: bool, how: str
) -> None:
    """A payment is not made three times because its instance died three times."""
    spec = dataclasses.replace(spec, idempotent=idempotent)
    await host.deploy(spec, 1)
    runs = tmp_path / "runs"
    with pytest.raises(ProcessGoneError if idempotent else InstanceFailedError) as caught:
        await host.invoke("probe", {"note": str(runs), how: True})
    assert runs.read_text() == "run\n" * (3 if idempotent else 1)
    if not idempotent:
        assert "is not tried again" in str(caught.value)
    await settled(host)
    assert (await host.invoke("probe", {"n": 1})).start == "cold"


async def test_a_request_whose_instance_was_gone_before_goes_to_another(
    host: FunctionHost, spec, agents, tmp_path: Path
) -> None:
    spec = dataclasses.replace(spec, idempotent=False)
    (one,) = await host.deploy(spec, 1)
    runs = tmp_path / "runs"
    begin = agents["fake:a"].begin

    async def begin_and_die(sandbox_id: str) -> Sandbox:
        sandbox = await begin(sandbox_id)
        if sandbox_id == one.instance_id:
            one.kill()
        return sandbox

    agents["fake:a"].begin = begin_and_die
    answer = await host.invoke("probe", {"note": str(runs)})
    assert (answer.start, runs.read_text()) == ("cold", "run\n")


async def test_without_its_agent_a_warm_instance_serves_and_a_dedupd_one_does_not(host, spec, agents) -> None:
    (one,) = await host.deploy(spec, 1)
    agents["fake:a"].down = True
    assert (await host.invoke("probe", instance_id=one.instance_id)).start == "warm"
    await settled(host)
    agents["fake:a"].down = False
    await host.dedup(one)
    agents["fake:a"].down = True
    with pytest.raises(PeerUnreachableError):
        await host.invoke("probe", instance_id=one.instance_id)
    assert not one.exited
    await settled(host)
    agents["fake:a"].down = False
    agents["fake:a"].sandboxes[one.instance_id] = dataclasses.replace(one.sandbox, state=S.DEDUP)
    assert (await host.invoke("probe", instance_id=one.instance_id)).start == "dedup"


async def test_an_agent_that_forgot_is_told_again(host: FunctionHost, spec, agents) -> None:
    (one,) = await host.deploy(spec, 1)
    agents["fake:a"].sandboxes.clear()
    assert (await host.invoke("probe")).instance_id == one.instance_id
    assert agents["fake:a"].calls.count(f"register {one.instance_id}") == 2


async def test_an_instance_that_ends_by_itself_is_dropped(host: FunctionHost, spec, agents) -> None:
    (one,) = await host.deploy(spec, 1)
    one._spawned.process.kill()
    await until(lambda: not host.functions["probe"].instances and not agents["fake:a"].sandboxes)


@pytest.mark.parametrize(
    ("cause", "level", "text"),
    [
        (PurgeCause.TIMER, logging.INFO, "was ended by its agent: test"),
        (PurgeCause.EXITED, logging.WARNING, "ended by itself"),
        (PurgeCause.ASKED, logging.WARNING, "ended by itself"),
    ],
)
async def test_the_log_says_who_ended_an_instance(
    host: FunctionHost, spec, agents, caplog, cause: PurgeCause, level: int, text: str
) -> None:
    """An agent that ends one at the end of a period says so after its processes are gone."""
    (one,) = await host.deploy(spec, 1)
    agent = agents["fake:a"]

    async def purge(sandbox_id: str) -> None:
        agent.report(sandbox_id, S.PURGED, cause)
        del agent.sandboxes[sandbox_id]

    agent.purge = purge
    with caplog.at_level(logging.INFO):
        one._spawned.process.kill()
        await until(lambda: f"{one.instance_id} " in caplog.text)
    (record,) = [r for r in caplog.records if r.getMessage().startswith(f"{one.instance_id} ")]
    assert (record.levelno, text in record.getMessage()) == (level, True)


async def test_busy_when_every_place_is_taken(host: FunctionHost, spec, monkeypatch) -> None:
    monkeypatch.setattr("medes.runtimes.host.host.INSTANCES_PER_FUNCTION_MAX", 1)
    (one,) = await host.deploy(spec, 1)
    running = asyncio.create_task(host.invoke("probe", {"sleep": 1}))
    await asyncio.sleep(0.1)
    with pytest.raises(BusyError, match="no instance was free"):
        await host.invoke("probe", timeout_s=0.2)
    with pytest.raises(BusyError, match="serves a request"):
        await host.dedup(one)
    await running


async def test_bad_deployments(host: FunctionHost, spec, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError):
        await host.deploy(spec, 0)
    broken = dataclasses.replace(spec, name="broken", handler="code:missing")
    with pytest.raises(HandlerError, match="AttributeError"):
        await host.deploy(broken, 2)
    assert host.functions == {}
    await host.deploy(spec, 1)
    with pytest.raises(AlreadyExistsError):
        await host.deploy(spec, 1)
    with pytest.raises(NotFoundError):
        await host.invoke("nobody")


async def test_the_control_socket(host: FunctionHost, spec, tmp_path: Path) -> None:
    path = tmp_path / "host.sock"
    row = await control.call(path, "POST", "/functions", {"folder": str(spec.folder), "instances": 2})
    assert [i["node_id"] for i in row["instances"]] == ["a", "b"]
    target = control.function_target("probe", "invocations")
    answer = await control.call(path, "POST", target, {"event": {"x": "ä"}})
    assert answer["result"]["event"] == {"x": "ä"}
    with pytest.raises(HandlerError) as caught:
        await control.call(path, "POST", target, {"event": {"raise": True}})
    assert caught.value.type == "ValueError" and caught.value.traceback
    for body in ({"folder": 1}, {"folder": str(spec.folder), "instances": "2"}):
        with pytest.raises(InvalidArgumentError):
            await control.call(path, "POST", "/functions", body)
    with pytest.raises(NotFoundError):
        await control.call(path, "GET", "/elsewhere")
    await control.call(path, "DELETE", "/functions/probe")
    assert (await control.call(path, "GET", "/functions"))["functions"] == []


@pytest.mark.parametrize("host_header", [b"", b"Host: h\r\n"])
@pytest.mark.parametrize(
    ("request_bytes", "code"),
    [
        (b"nonsense\r\n\r\n", "invalid_argument"),
        (b"GET /functions HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", "limit_exceeded"),
        (b"GET /functions HTTP/1.1\r\nContent-Length: -1\r\n\r\n", "limit_exceeded"),
        (b"POST /functions HTTP/1.1\r\nContent-Length: 2\r\n\r\n[]", "invalid_argument"),
        (b"POST /functions HTTP/1.1\r\nContent-Length: 1\r\n\r\n{", "invalid_argument"),
        (b"GET /functions HTTP/1.1\r\n" + b"X: y\r\n" * 9000, "limit_exceeded"),
        (b"GET /functions HTTP/1.1\r\nContent-Length: 0\r\ncontent-length: 2\r\n\r\n", "invalid_argument"),
        (b"GET /functions HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", "invalid_argument"),
        (b"GET /functions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "invalid_argument"),
        (b"GET /functions HTTP/1.1\r\nno colon\r\n\r\n", "invalid_argument"),
        (b"GET /functions HTTP/1.1\r\nContent-Length : 2\r\n\r\n{}", "invalid_argument"),
        (b"GET /functions HTTP/1.1\r\nA: b\r\n c\r\n\r\n", "invalid_argument"),
        (b"GET /functions HTTP/1.1\r\n: b\r\n\r\n", "invalid_argument"),
        (b"GET /functions", "invalid_argument"),
    ],
)
async def test_malformed_control_requests(
    host: FunctionHost, tmp_path: Path, request_bytes: bytes, code: str, host_header: bytes
) -> None:
    request_bytes = request_bytes.replace(b"HTTP/1.1\r\n", b"HTTP/1.1\r\n" + host_header, 1)
    reader, writer = await asyncio.open_unix_connection(str(tmp_path / "host.sock"))
    with contextlib.suppress(ConnectionError):
        writer.write(request_bytes)
        writer.write_eof()
        await writer.drain()
    answer = await reader.read()
    writer.close()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == code


async def test_a_second_host_is_refused(host: FunctionHost, tmp_path: Path) -> None:
    with pytest.raises(AlreadyExistsError):
        await control.ControlServer(host, tmp_path / "host.sock").start()


async def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(HostUnreachableError, match="function serve"):
        await control.call(tmp_path / "none.sock", "GET", "/functions")
