"""Sandboxes that tick: they sleep on, what they touch is learnt, and stays with the next instance and the next agent."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator

import pytest

from medes.client import MedesClient
from medes.types import NoteCode, Sandbox
from medes.types import SandboxState as S
from tests.e2e.test_recovery import killed_by
from tests.support.cluster import Cluster, wait_until
from tests.support.live import Program
from tests.support.metrics import sample
from tests.support.ports import free_port

pytestmark = pytest.mark.live
MakeCluster = Callable[..., Cluster]
TICKER = """
import hashlib, sys, threading, time
big = [hashlib.sha256(str(i).encode()).digest() * 64 for i in range(8000)]
digest = hashlib.sha256(b"".join(big)).hexdigest()
ticks = 0
def tick():
    global ticks
    while True:
        time.sleep(0.02)
        ticks += 1
threading.Thread(target=tick, daemon=True).start()
print("ready", flush=True)
for number, line in enumerate(sys.stdin):
    if line == "ticks\\n":
        answer = ticks
    else:
        answer = "intact" if hashlib.sha256(b"".join(big)).hexdigest() == digest else "BROKEN"
    print(number, answer, flush=True)
"""


@pytest.fixture
def make_ticker() -> Iterator[Callable[[], Program]]:
    made: list[Program] = []

    def make() -> Program:
        made.append(Program([sys.executable, "-c", TICKER]))
        return made[-1]

    yield make
    for program in made:
        program.__exit__(None, None, None)


def asleep(client: MedesClient, sandbox_id: str, touched_bytes_min: int = 1) -> Sandbox:
    """The sandbox once it has touched what it touches at each tick."""

    def steady() -> Sandbox | None:
        before = client.get(sandbox_id)
        time.sleep(0.5)
        now = client.get(sandbox_id)
        return now if now.touched_bytes == before.touched_bytes >= touched_bytes_min else None

    return wait_until(steady, "it touches nothing more")


def test_a_sandbox_that_ticks_sleeps_on(
    make_cluster: MakeCluster, make_ticker: Callable[[], Program]
) -> None:
    cluster, program = make_cluster(nodes=1, controller=False), make_ticker()
    with cluster.agents[0].client() as client:
        client.register("ticker", pids=[program.pid], sandbox_id="a")
        report = client.dedup("a").report
        sandbox = asleep(client, "a")
        before = int(program.ask("ticks"))
        wait_until(lambda: int(program.ask("ticks")) > before, "it ticks")
        sandbox = client.get("a")
        assert (sandbox.state, sandbox.restore_count) == (S.DEDUP, 0)
        assert report.resident_bytes < sandbox.kept_bytes < sandbox.warm_bytes // 2
        assert sandbox.kept_bytes >= sandbox.touched_bytes
        assert program.ask("check") == "intact"  # more than a tick: nobody reported it, and it is restored
        wait_until(lambda: client.get("a").state is S.WARM, "restored by what it touched")
        last = client.get("a").last_restore
        assert last is not None and last.demand_woken


def test_the_next_instance_keeps_what_the_first_touched(
    make_cluster: MakeCluster, make_ticker: Callable[[], Program]
) -> None:
    metrics_address = f"127.0.0.1:{free_port()}"
    cluster = make_cluster(nodes=1, controller=False, metrics_address=metrics_address)
    with cluster.agents[0].client() as client:
        client.register("ticker", pids=[make_ticker().pid], sandbox_id="a")
        client.dedup("a")
        asleep(client, "a")
        wait_until(
            lambda: sample(metrics_address, "medes_agent_pages_touched_total") > 0,
            "its tick set is learnt while it sleeps",
        )
        client.register("ticker", pids=[make_ticker().pid], sandbox_id="b")
        client.dedup("b")
        second = asleep(client, "b", touched_bytes_min=0)
        # Its interpreter's pages are at home in every instance, those of its heap not always.
        assert second.touched_bytes < 0.9 * client.get("a").touched_bytes
        assert client.get("a").state is client.get("b").state is S.DEDUP


def test_it_sleeps_on_under_the_next_agent(
    make_cluster: MakeCluster, make_ticker: Callable[[], Program]
) -> None:
    cluster, program = make_cluster(nodes=1, controller=False), make_ticker()
    agent = cluster.agents[0]
    with agent.client() as client:
        client.register("ticker", pids=[program.pid], sandbox_id="a")
        client.dedup("a")
        before = asleep(client, "a")
    agent.kill()
    agent.start()
    with agent.client() as client:
        wait_until(lambda: client.get("a").waiting == "", "taken back")
        sandbox = client.get("a")
        assert (sandbox.state, sandbox.restore_count) == (S.DEDUP, 0)
        assert before.touched_bytes <= sandbox.touched_bytes
        assert sandbox.kept_bytes < sandbox.warm_bytes // 2
        ticks = int(program.ask("ticks"))
        wait_until(lambda: int(program.ask("ticks")) > ticks, "it ticks")
        assert client.get("a").state is S.DEDUP
        client.restore("a", eager=True)
        assert program.ask("check") == "intact"


def test_without_touches_the_first_one_restores(
    make_cluster: MakeCluster, make_ticker: Callable[[], Program]
) -> None:
    cluster, program = make_cluster(nodes=1, controller=False, touches_per_s_max=0), make_ticker()
    with cluster.agents[0].client() as client:
        client.register("ticker", pids=[program.pid], sandbox_id="a")
        client.dedup("a")
        wait_until(lambda: client.get("a").state is S.WARM, "it woke itself")
        assert program.ask("check") == "intact"


def test_a_dedup_of_a_sleeper_takes_what_it_touched(
    make_cluster: MakeCluster, make_ticker: Callable[[], Program]
) -> None:
    metrics_address = f"127.0.0.1:{free_port()}"
    cluster = make_cluster(nodes=1, controller=False, metrics_address=metrics_address)
    program = make_ticker()
    with cluster.agents[0].client() as client:
        client.register("ticker", pids=[program.pid], sandbox_id="a")
        client.dedup("a")
        program.ask("ticks")
        asleep(client, "a")
        report = client.dedup("a").report
        assert NoteCode.RECLAIMED in [note.code for note in report.notes]
        # What it ticks with comes back, and stays from the next time on.
        asleep(client, "a")
        client.dedup("a")
        sandbox = asleep(client, "a")
        assert (sandbox.state, sandbox.dedup_count, sandbox.restore_count) == (S.DEDUP, 1, 0)
        assert 0 < sandbox.touched_bytes < sandbox.warm_bytes // 2
        assert sample(metrics_address, "medes_agent_pages_reclaimed_total") > 0
        client.restore("a", eager=True)
        assert program.ask("check") == "intact"


@pytest.mark.parametrize("point", ["reclaim.marked", "reclaim.done", "reclaim.taken"])
def test_killed_in_a_reclaim(
    make_cluster: MakeCluster, make_ticker: Callable[[], Program], point: str
) -> None:
    cluster, program = make_cluster(nodes=1, controller=False), make_ticker()
    agent = cluster.agents[0]
    with agent.client() as client:
        client.register("ticker", pids=[program.pid], sandbox_id="a")
        client.dedup("a")
        program.ask("ticks")
        asleep(client, "a")
    agent.kill()
    killed_by(agent, point, lambda c: c.dedup("a"))
    with agent.client() as client:
        assert int(program.ask("ticks")) > 0
        wait_until(lambda: client.get("a").state is S.DEDUP, "it sleeps on")
        client.restore("a", eager=True)
        assert program.ask("check") == "intact"
        client.dedup("a")
        client.restore("a", eager=True)
        assert program.ask("check") == "intact"
