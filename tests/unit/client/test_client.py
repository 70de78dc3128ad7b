"""Both clients against a fake agent: typed results, catalogue errors, streams."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from medes.rpc.gen.agent_pb2_grpc import add_AgentServiceServicer_to_server

from medes.certs.parties import Role
from medes.client import AsyncMedesClient, ControllerClient, MedesClient
from medes.errors import (
    AgentUnreachableError,
    AlreadyExistsError,
    ControllerUnreachableError,
    InvalidArgumentError,
    LimitExceededError,
    NotFoundError,
    UnsupportedError,
    WrongStateError,
)
from medes.types import LifecycleSettings, SandboxEvent, SandboxState
from tests.support.certificates import of_run
from tests.support.fake_agent import FakeAgent
from tests.support.served import served


@pytest.fixture
def agent() -> FakeAgent:
    return FakeAgent()


@pytest.fixture(params=["unix", "tcp"])
def address(request: pytest.FixtureRequest, agent: FakeAgent, tmp_path: Path) -> Iterator[str]:
    where = f"unix:{tmp_path}/agent.sock" if request.param == "unix" else "127.0.0.1:0"
    with served(lambda s: add_AgentServiceServicer_to_server(agent, s), where) as bound:
        yield bound


def test_blocking_round(address: str, agent: FakeAgent) -> None:
    with MedesClient(address) as medes:
        lifecycle = LifecycleSettings(idle_period_ms=5)
        sandbox = medes.register("f", pids=[4, 5], tenant="t", lifecycle=lifecycle, purge_kills=True)
        assert (sandbox.state, sandbox.pids, sandbox.domain) == (SandboxState.WARM, (4, 5), "t")
        assert agent.requests[-1].lifecycle.idle_period_ms == 5
        assert agent.requests[-1].purge_kills
        i = sandbox.sandbox_id
        assert medes.begin(i).state is SandboxState.RUNNING
        with pytest.raises(WrongStateError, match="not idle"):
            medes.dedup(i)
        assert medes.end(i).state is SandboxState.WARM
        result = medes.dedup(i, make_base=True, hold_frozen=True)
        assert (result.report.saved_bytes, result.report.pages_by_kind) == (85 << 20, (1, 2, 3, 4, 5))
        assert (agent.requests[-1].make_base, agent.requests[-1].hold_frozen) == (True, True)
        assert result.sandbox.state is SandboxState.DEDUP
        assert medes.get(i).last_dedup == result.report
        restored = medes.restore(i, eager=True, queue_deadline_ms=70)
        assert (restored.report.was_dedup, restored.sandbox.restore_count) == (True, 1)
        assert (agent.requests[-1].eager, agent.requests[-1].deadline_ms) == (True, 70)
        assert not medes.restore(i).report.was_dedup
        assert [s.sandbox_id for s in medes.list()] == [i]
        assert medes.list("g") == []
        status = medes.node()
        assert (status.bases[0].base.base_id, status.bases[0].pins) == (5, 2)
        assert status.pages_read_by_transport == {"tcp": 3}
        medes.purge(i)
        with pytest.raises(NotFoundError) as caught:
            medes.get(i)
        assert (caught.value.object, caught.value.hint) == (i, "medes sandbox ls")
    medes.close()


async def test_asyncio_round(address: str) -> None:
    async with AsyncMedesClient(address) as medes:
        sandbox = await medes.register("f", cgroup="/x", sandbox_id="mine")
        assert sandbox.sandbox_id == "mine"
        with pytest.raises(AlreadyExistsError):
            await medes.register("f", cgroup="/x", sandbox_id="mine")
        assert (await medes.begin("mine")).state is SandboxState.RUNNING
        assert (await medes.end("mine")).state is SandboxState.WARM
        assert (await medes.dedup("mine")).report.warm_bytes == 100 << 20
        assert (await medes.restore("mine")).report.was_dedup
        assert (await medes.get("mine")).dedup_count == 1
        assert len(await medes.list("f")) == 1
        assert (await medes.node()).node_id == "fake"
        await medes.purge("mine")
        with pytest.raises(NotFoundError):
            await medes.purge("mine")


async def test_watch_asyncio(address: str) -> None:
    async with AsyncMedesClient(address) as medes:
        events: list[SandboxEvent] = []
        started = asyncio.Event()

        async def watch() -> None:
            started.set()
            async for event in medes.watch():
                events.append(event)
                if event.sandbox.state is SandboxState.DEDUP:
                    return

        task = asyncio.create_task(watch())
        await started.wait()
        # The stream is open once a first event has come.
        for i in range(50):
            await medes.register("f", pids=[1], sandbox_id=f"s{i}")
            await asyncio.sleep(0.05)
            if events:
                break
        await medes.dedup("s0")
        await asyncio.wait_for(task, 20)
    assert (events[-1].previous, events[-1].reason) == (SandboxState.WARM, "asked")
    assert [e.sequence for e in events] == sorted({e.sequence for e in events})


def test_watch_blocking_ends_with_its_iterator(address: str, agent: FakeAgent) -> None:
    with MedesClient(address) as medes:
        stream = medes.watch()
        stop = threading.Event()

        def feed() -> None:
            with MedesClient(address) as other:
                for i in range(200):
                    other.register("f", pids=[1], sandbox_id=f"s{i}")
                    if stop.wait(0.05):
                        return

        feeder = threading.Thread(target=feed)
        feeder.start()
        event = next(stream)
        stop.set()
        feeder.join(20)
        stream.close()  # type: ignore[attr-defined]
        assert event.sandbox.function == "f"


def test_wrong_use(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError):
        MedesClient("nonsense")
    with MedesClient(f"unix:{tmp_path}/none.sock") as medes:
        with pytest.raises(InvalidArgumentError, match="either pids or a cgroup"):
            medes.register("f")
        with pytest.raises(InvalidArgumentError):
            medes.register("f", pids=[1], cgroup="/x")
        with pytest.raises(InvalidArgumentError):
            medes.register("f", pids=[2**40])
        for pids in (5, "5", {5: 6}, None, iter([5])):
            with pytest.raises(InvalidArgumentError, match="not a list of process ids"):
                medes.register("f", pids=pids)  # type: ignore[arg-type]
        with pytest.raises(LimitExceededError, match="at most 4096"):
            medes.register("f", pids=range(1, 5000))
        with pytest.raises(InvalidArgumentError):
            medes.begin(5)  # type: ignore[arg-type]
        with pytest.raises(AgentUnreachableError, match=r"none\.sock"):
            medes.list()


async def test_nothing_is_asked_of_a_closed_client(address: str) -> None:
    def blocking() -> None:
        with MedesClient(address) as medes:
            medes.list()
        calls: tuple[Callable[[], object], ...] = (
            lambda: medes.register("f", pids=[4]),
            lambda: medes.begin("a"),
            lambda: medes.end("a"),
            lambda: medes.dedup("a"),
            lambda: medes.restore("a"),
            lambda: medes.purge("a"),
            lambda: medes.get("a"),
            medes.list,
            lambda: next(iter(medes.watch())),
            medes.node,
        )
        for call in calls:
            with pytest.raises(WrongStateError, match="closed"):
                call()
        medes.close()

    await asyncio.to_thread(blocking)
    async with AsyncMedesClient(address) as client:
        await client.list()
    with pytest.raises(WrongStateError, match="closed"):
        await client.begin("a")
    with pytest.raises(WrongStateError, match="closed"):
        await anext(aiter(client.watch()))
    await client.close()


async def test_close_while_calls_are_under_way(address: str, agent: FakeAgent) -> None:
    """From another thread or task: each call ends with a clear error, and the interpreter lives."""
    agent.held = asyncio.Event()  # never set: Dedup does not answer

    async def held(count: int) -> None:
        for _ in range(2000):
            if sum(type(r).__name__ == "DedupRequest" for r in agent.requests) >= count:
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"{count} calls did not come")

    medes = MedesClient(address)
    medes.register("f", pids=[4], sandbox_id="a")
    with ThreadPoolExecutor(4) as threads:
        waiting = [threads.submit(medes.dedup, "a") for _ in range(3)]
        await held(3)
        medes.close()
        for call in waiting:
            with pytest.raises(WrongStateError, match="closed"):
                await asyncio.to_thread(call.result, 20)
    client = AsyncMedesClient(address)
    task = asyncio.create_task(client.dedup("a"))
    await held(4)
    await client.close()
    with pytest.raises(WrongStateError, match="closed"):
        await asyncio.wait_for(task, 20)


FORKS = """
import os, sys
from medes.client import MedesClient
from medes.errors import WrongStateError
medes = MedesClient(sys.argv[1])
assert medes.list() == []
child = os.fork()
if child == 0:
    try:
        medes.list()
    except WrongStateError as error:
        medes.close()
        sys.exit(7 if "fork" in str(error) else 8)
    sys.exit(9)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
assert medes.list() == []  # the parent's goes on
medes.close()
sys.exit(status)
"""


def test_a_forked_child_is_told_to_make_its_own(address: str) -> None:
    done = subprocess.run([sys.executable, "-c", FORKS, address], timeout=60, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (7, "")


def test_the_wrong_daemon_says_what_it_is(address: str) -> None:
    """Over TCP its certificate does: a node's is not a controller's."""
    unix = address.startswith("unix:")
    with (
        ControllerClient(address) as controller,
        pytest.raises(UnsupportedError if unix else ControllerUnreachableError) as caught,
    ):
        controller.nodes()
    assert ("this is an agent's restore API, not a controller" if unix else "Hostname Verification") in str(
        caught.value
    )


AS_NOBODY = """
import os, sys
from medes.client import MedesClient
from medes.errors import PermissionDeniedError
os.setuid(65534)
with MedesClient(sys.argv[1]) as medes:
    try:
        medes.list()
    except PermissionDeniedError as error:
        print(error)
"""


def test_a_socket_of_another_user_is_no_absent_agent(agent: FakeAgent, tmp_path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can become somebody else")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        with served(
            lambda s: add_AgentServiceServicer_to_server(agent, s), f"unix:{folder}/a.sock"
        ) as address:
            for closed, text in ((0o600, "may not use the socket"), (0o666, "")):
                Path(folder, "a.sock").chmod(closed)
                done = subprocess.run(
                    [sys.executable, "-c", AS_NOBODY, address], capture_output=True, text=True, timeout=60
                )
                assert (done.returncode, done.stderr) == (0, "")
                assert text in done.stdout and bool(done.stdout) == bool(text)


def test_something_else_listens_there(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        port = listener.getsockname()[1]
        with (
            MedesClient(f"127.0.0.1:{port}", tls=of_run("r", Role.RUNTIME), timeout_s=20) as medes,
            pytest.raises(AgentUnreachableError, match="no agent answers here: "),
        ):
            medes.list()
        thread.join(20)
