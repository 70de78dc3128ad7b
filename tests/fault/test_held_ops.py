"""A freezer of cgroup v1 that catches a sandbox at the entry of a call that the driver makes in it: the call cannot be called
off, and is made at the thaw. Nobody waits for that, nothing else stands still, and the sandbox is whole in the end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from medes.client import MedesClient
from medes.errors import AlreadyExistsError, BusyError, MedesError, NotFoundError
from medes.types import SandboxState as S
from tests.support.cluster import AgentProcess, Cluster, wait_until
from tests.support.counter_app import App
from tests.support.freezer import Freezer, freezer_of, passing_on, stop_in_call

pytestmark = pytest.mark.live
MakeCluster = Callable[..., Cluster]
MakeApp = Callable[..., App]

# Before a page can go; while its library data is put into place; in the middle of the eviction.
CALLS = {"userfaultfd": 323, "mremap": 25, "process_madvise": 440}
FROZEN = r"its cgroup /\S+ is frozen"
ANSWER_S = 60.0


@pytest.fixture
def freezer() -> Iterator[Freezer]:
    with freezer_of("v1") as made:
        yield made


@contextmanager
def held_up(
    agent: AgentProcess, app: App, freezer: Freezer, call: str, purge_kills: bool = False
) -> Iterator[MedesError]:
    """The sandbox "a" of that app, held up in the middle of its first dedup op: what the caller of the op heard."""
    freezer.add(app.pid)
    heard: list[MedesError] = []

    def dedup() -> None:
        with agent.client() as client:
            try:
                client.dedup("a")
            except MedesError as error:
                heard.append(error)

    with agent.client() as client:
        client.register("counter", pids=[app.pid], sandbox_id="a", purge_kills=purge_kills)
    assert agent.process is not None
    caller = threading.Thread(target=dedup)
    with ExitStack() as stack:
        caller.start()
        try:
            stop_in_call(agent.process.pid, app.pid, CALLS[call])
            freezer.freeze()
        finally:
            stack.enter_context(passing_on(agent.process.pid))
            caller.join(ANSWER_S)
        assert heard, "the caller was not answered"
        yield heard[0]


def stopping_agent(make_cluster: MakeCluster) -> AgentProcess:
    agent = make_cluster(nodes=1, controller=False).agents[0]
    agent.kill()
    agent.environment["MEDES_FAULT"] = "stop:inject.changed"
    return agent.start()


def settled(client: MedesClient) -> S:
    """Its state, once no op is under way."""
    moving = (S.DEDUPING, S.RESTORING)
    wait_until(lambda: client.get("a").state not in moving, "the op's end")
    return client.get("a").state


def check_whole(agent: AgentProcess, app: App) -> None:
    app.ask()
    with agent.client() as client:
        settled(client)
        client.restore("a", eager=True)
        app.ask()
        assert settled(client) is S.WARM
        assert agent.shm_files("sandbox-") == []
        client.dedup("a")
        assert client.get("a").state is S.DEDUP
        client.restore("a", eager=True)
        app.ask()


@pytest.mark.parametrize("call", CALLS)
def test_callers_are_told_and_nothing_else_stands_still(
    make_cluster: MakeCluster, make_app: MakeApp, freezer: Freezer, call: str
) -> None:
    agent, app, other = stopping_agent(make_cluster), make_app(megabytes=2), make_app(megabytes=2, seed=2)
    with held_up(agent, app, freezer, call) as told, agent.client() as client:
        assert isinstance(told, BusyError)
        assert told.hint.startswith("thaw it")
        for ask in (
            lambda: client.dedup("a"),
            lambda: client.restore("a", eager=True),
            lambda: client.begin("a"),
            lambda: client.purge("a"),
        ):
            with pytest.raises(BusyError, match=FROZEN):
                ask()
        with pytest.raises(AlreadyExistsError):
            client.register("counter", pids=[app.pid], sandbox_id="again")
        explained = client.explain("a")
        assert explained.sandbox.state is S.DEDUPING
        assert "held up" in explained.reason
        assert "is frozen" in explained.next_reason
        # One dedup op at a time is the default, and the turn is not with the one that is held up.
        client.register("counter", pids=[other.pid], sandbox_id="b")
        client.dedup("b")
        client.restore("b", eager=True)
        other.ask()
        freezer.set(False)
        assert settled(client) in (S.WARM, S.DEDUP)
        check_whole(agent, app)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_an_agent_ends_meanwhile_and_the_next_takes_it_up(
    make_cluster: MakeCluster, make_app: MakeApp, freezer: Freezer, call: str, how: signal.Signals
) -> None:
    agent, app = stopping_agent(make_cluster), make_app(megabytes=2)
    with held_up(agent, app, freezer, call):
        assert agent.end(how, timeout_s=60.0) == (0 if how == signal.SIGTERM else -how)
    agent.environment.clear()
    agent.start()
    with agent.client() as client:
        assert client.get("a").state in (S.WARM, S.DEDUP)
        freezer.set(False)
        wait_until(lambda: client.get("a").state is not S.RESTORING, "settled")
        check_whole(agent, app)


@pytest.mark.parametrize("call", CALLS)
def test_thawed_before_the_next_agent_is_there(
    make_cluster: MakeCluster, make_app: MakeApp, freezer: Freezer, call: str
) -> None:
    agent, app = stopping_agent(make_cluster), make_app(megabytes=2)
    with held_up(agent, app, freezer, call):
        agent.end(signal.SIGTERM, timeout_s=60.0)
    freezer.set(False)
    agent.environment.clear()
    agent.start()
    check_whole(agent, app)


@pytest.mark.parametrize("call", CALLS)
def test_a_purge_that_kills_is_carried_out_at_the_thaw(
    make_cluster: MakeCluster, make_app: MakeApp, freezer: Freezer, call: str
) -> None:
    agent, app = stopping_agent(make_cluster), make_app(megabytes=2)
    with held_up(agent, app, freezer, call, purge_kills=True), agent.client() as client:
        with pytest.raises(BusyError, match="were killed"):
            client.purge("a")
        freezer.set(False)

        def forgotten() -> bool:
            try:
                client.get("a")
            except NotFoundError:
                return True
            return False

        wait_until(forgotten, "it is forgotten")
        assert app.process.wait(30) == -signal.SIGKILL
        wait_until(lambda: agent.shm_files("sandbox-") == [], "no file is left")
        assert sum(b.pins for b in client.node().bases) == 0


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_sandbox_that_is_out_is_restored_while_it_is_frozen(
    make_cluster: MakeCluster, make_app: MakeApp, version: str
) -> None:
    """A restore makes no calls in it: all pages are in before the thaw."""
    agent, app = make_cluster(nodes=1, controller=False).agents[0], make_app(megabytes=2)
    with freezer_of(version) as freezer, agent.client() as client:
        freezer.add(app.pid)
        client.register("counter", pids=[app.pid], sandbox_id="a")
        client.dedup("a")
        freezer.set(True)
        client.restore("a", eager=True)
        assert client.get("a").state is S.WARM
        with pytest.raises(BusyError, match=FROZEN):
            client.dedup("a")
        freezer.set(False)
        app.ask()
        app.close()
