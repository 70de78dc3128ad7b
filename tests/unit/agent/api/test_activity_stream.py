"""begin() and end() over the Activities stream: as calls of their own would, for many callers at once."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client import generate_latest

from medes.agent.api import handlers
from medes.agent.api.registration import Registration
from medes.agent.daemon import AgentDaemon
from medes.client import AsyncMedesClient, MedesClient
from medes.client.messages import activity_request
from medes.errors import (
    AgentUnreachableError,
    DeadlineExceededError,
    InvalidArgumentError,
    LimitExceededError,
    NotFoundError,
    WrongStateError,
)
from medes.limits import API_REQUEST_BYTES_MAX
from medes.types import Activity
from medes.types import SandboxState as S
from tests.support.counter_app import App
from tests.unit.agent.conftest import MakeAgent

MakeApp = Callable[..., App]
THREADS, PAIRS = 8, 40


async def with_sandboxes(make_agent: MakeAgent, make_app: MakeApp, *names: str) -> AgentDaemon:
    daemon = await make_agent()
    for name in names:
        pids = (make_app(megabytes=1).pid,)
        await handlers.register(daemon.agent, Registration(sandbox_id=name, function="f", pids=pids))
    return daemon


async def until(condition: Callable[[], bool], what: str) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(what)


async def test_many_threads_share_one_stream(make_agent: MakeAgent, make_app: MakeApp) -> None:
    daemon = await with_sandboxes(make_agent, make_app, "a", "b")

    def work(medes: MedesClient, number: int) -> None:
        name = "ab"[number % 2]
        for _ in range(PAIRS):
            assert medes.begin(name).state is S.RUNNING
            assert medes.end(name).state in (S.RUNNING, S.WARM)  # others may be in it

    def all_threads() -> None:
        with MedesClient(daemon.settings.listen) as medes, ThreadPoolExecutor(THREADS) as threads:
            for done in [threads.submit(work, medes, number) for number in range(THREADS)]:
                done.result(60)

    await asyncio.to_thread(all_threads)
    assert [(e.requests, e.state) for e in daemon.agent.entries.values()] == [(0, S.WARM)] * 2
    metrics = generate_latest(daemon.registry).decode()
    total = float(2 * THREADS * PAIRS)
    assert f'medes_rpc_calls_total{{method="NotifyActivity",status="OK"}} {total}' in metrics


async def test_answers_and_errors_are_those_of_calls(make_agent: MakeAgent, make_app: MakeApp) -> None:
    daemon = await with_sandboxes(make_agent, make_app, "a")
    async with AsyncMedesClient(daemon.settings.listen) as medes:
        for activity, by_stream in ((Activity.BEGUN, medes.begin), (Activity.ENDED, medes.end)):
            streamed = await by_stream("a")
            called = await medes.stub.NotifyActivity(activity_request("a", activity))
            assert (streamed.sandbox_id, streamed.pids) == ("a", tuple(called.pids))
        assert (streamed.state, called.state) == (S.RUNNING, S.WARM)  # two begun, and one of them left
        with pytest.raises(NotFoundError) as stream_error:
            await medes.begin("nobody")
        with pytest.raises(NotFoundError) as call_error:
            await medes.stub.NotifyActivity(activity_request("nobody", Activity.BEGUN))
        assert str(stream_error.value) == str(call_error.value)
        with pytest.raises(InvalidArgumentError):
            await medes.begin(7)  # type: ignore[arg-type]
        assert daemon.agent.entries["a"].requests == 0


@pytest.mark.parametrize("blocking", [True, False])
async def test_one_that_waits_holds_up_no_other(
    make_agent: MakeAgent, make_app: MakeApp, blocking: bool
) -> None:
    daemon = await with_sandboxes(make_agent, make_app, "slow", "quick")
    slow = daemon.agent.entries["slow"]
    async with Caller(daemon, blocking) as caller:
        async with slow.lock:  # an op is at it
            waiting = asyncio.create_task(caller.begin("slow"))
            await until(lambda: slow.requests == 1, "begun")
            await caller.begin("quick")
            await caller.end("quick")
            assert not waiting.done()
        await asyncio.wait_for(waiting, 20)
        assert slow.state is S.RUNNING
        await caller.end("slow")
    assert (slow.requests, slow.state) == (0, S.WARM)


@pytest.mark.parametrize("blocking", [True, False])
async def test_a_name_that_is_too_long_breaks_no_others_stream(
    make_agent: MakeAgent, make_app: MakeApp, blocking: bool
) -> None:
    daemon = await with_sandboxes(make_agent, make_app, "slow")
    slow = daemon.agent.entries["slow"]
    async with Caller(daemon, blocking) as caller:
        async with slow.lock:  # an op is at it
            waiting = asyncio.create_task(caller.begin("slow"))
            await until(lambda: slow.requests == 1, "begun")
            with pytest.raises(LimitExceededError):
                await caller.begin("x" * API_REQUEST_BYTES_MAX)
            assert not waiting.done()
        await asyncio.wait_for(waiting, 20)
        await caller.end("slow")


@pytest.mark.parametrize("blocking", [True, False])
async def test_nobody_runs_for_a_caller_that_has_given_up(
    make_agent: MakeAgent, make_app: MakeApp, blocking: bool
) -> None:
    daemon = await with_sandboxes(make_agent, make_app, "a")
    entry = daemon.agent.entries["a"]
    async with Caller(daemon, blocking, timeout_s=0.3) as caller, entry.lock:
        with pytest.raises(DeadlineExceededError, match=r"no answer within 0\.3 s"):
            await caller.begin("a")
        await until(lambda: entry.requests == 0, "as if it had not begun")
    async with Caller(daemon, blocking) as caller, entry.lock:
        waiting = asyncio.create_task(caller.begin("a"))
        await until(lambda: entry.requests == 1, "begun")
        await caller.close()  # the caller's end is its calls' end
        with pytest.raises(WrongStateError, match="closed"):
            await asyncio.wait_for(waiting, 20)
        await until(lambda: entry.requests == 0, "as if it had not begun")
    assert entry.state is S.WARM


@pytest.mark.parametrize("blocking", [True, False])
async def test_a_client_outlives_its_agent(make_agent: MakeAgent, make_app: MakeApp, blocking: bool) -> None:
    first = await with_sandboxes(make_agent, make_app, "a")
    async with Caller(first, blocking) as caller:
        await caller.begin("a")
        await caller.end("a")
        await first.stop()
        with pytest.raises(AgentUnreachableError):
            await caller.begin("a")
        await make_agent(listen=first.settings.listen)

        async def again() -> bool:
            try:
                await caller.begin("a")
            except AgentUnreachableError:
                return False  # gRPC waits a little before it connects again
            return True

        for _ in range(500):
            if await again():
                break
            await asyncio.sleep(0.02)
        await caller.end("a")


async def test_a_client_that_is_dropped_leaves_no_stream(make_agent: MakeAgent, make_app: MakeApp) -> None:
    """One client a request, never closed: the agent bounds the streams that it serves."""
    daemon = await with_sandboxes(make_agent, make_app, "a")
    assert daemon._servicer is not None

    def request() -> None:
        medes = MedesClient(daemon.settings.listen)
        medes.begin("a")
        medes.end("a")

    for _ in range(5):
        await asyncio.to_thread(request)
    gc.collect()
    streams = daemon._servicer._streams
    await until(lambda: not streams, "all streams have ended")
    assert not [t for t in threading.enumerate() if t.name == "medes-activity" and t.is_alive() and _lives(t)]


def _lives(thread: threading.Thread) -> bool:
    thread.join(20)
    return thread.is_alive()


class Caller:
    """Either client behind one face."""

    def __init__(self, daemon: AgentDaemon, blocking: bool, timeout_s: float = 30.0) -> None:
        kind = MedesClient if blocking else AsyncMedesClient
        self._client = kind(daemon.settings.listen, timeout_s=timeout_s)
        self._blocking = blocking

    async def _do(self, name: str, *arguments: str) -> None:
        method = getattr(self._client, name)
        await (asyncio.to_thread(method, *arguments) if self._blocking else method(*arguments))

    async def begin(self, sandbox_id: str) -> None:
        await self._do("begin", sandbox_id)

    async def end(self, sandbox_id: str) -> None:
        await self._do("end", sandbox_id)

    async def close(self) -> None:
        await self._do("close")

    async def __aenter__(self) -> Caller:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()
