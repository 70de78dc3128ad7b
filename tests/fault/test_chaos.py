"""A cluster under request load with random dedup and restore, while agents and controller are killed at random.

Every response is checked against the sandbox's own state: nothing lost, or the run fails. MEDES_SEED fixes the
seed, MEDES_CHAOS_S the length (default: a short round, which is part of `make test`).
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from medes.client import MedesClient
from medes.errors import MedesError
from medes.types import SandboxState as S
from tests.support import seed
from tests.support.cluster import AgentProcess, Cluster, wait_until
from tests.support.counter_app import App

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.chaos]

LENGTH_S = float(os.environ.get("MEDES_CHAOS_S", "12"))
JOIN_S = 180.0  # for what was under way when the round ended
# What a killed daemon, a request in the way or a storm may answer; anything else is a finding.
EXPECTED = {
    "agent_unreachable",
    "peer_unreachable",
    "cancelled",
    "wrong_state",
    "busy",
    "controller_unreachable",
    "deadline_exceeded",
}


@dataclass
class Run:
    """What the threads share."""

    end_s: float
    failures: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def running(self) -> bool:
        return time.monotonic() < self.end_s and not self.failures

    def count(self, what: str) -> None:
        with self.lock:
            self.counts[what] = self.counts.get(what, 0) + 1

    def expect(self, what: str, call: Callable[[], object]) -> None:
        """Counts the outcome; an unexpected error ends the run."""
        try:
            call()
            self.count(what)
        except MedesError as error:
            self.count(f"{what}: {error.code}")
            if error.code not in EXPECTED:
                self.failures.append(f"{what}: {error!r} {error}")


def diagnosis(agent: AgentProcess, sandbox_id: str, app: App) -> str:
    """What a sandbox that does not answer is doing, and what its agent thinks and logged of it."""
    found = [f"exit status {app.process.poll()}"]
    for task in sorted(Path(f"/proc/{app.pid}/task").glob("*")):
        with contextlib.suppress(OSError):
            state = task.joinpath("stat").read_text().rpartition(")")[2].split()[0]
            tracer = next(x for x in task.joinpath("status").read_text().splitlines() if "TracerPid" in x)
            where = [task.joinpath(name).read_text().strip() for name in ("wchan", "syscall")]
            found.append(f"{task.name} {state} {tracer} {where}")
    with contextlib.suppress(MedesError), agent.client() as client:
        found.append(str(client.get(sandbox_id)))
    lines = [x for x in agent.log.read_text().splitlines() if f"{sandbox_id}" in x or "recovered" in x]
    return "\n".join([*found, *lines[-25:]])


def load(run: Run, agent: AgentProcess, sandbox_id: str, app: App, rng: random.Random) -> None:
    """A runtime with one instance: reports activity, sends requests, checks answers."""
    with agent.client() as client:
        while run.running():
            time.sleep(rng.choice((0.05, 0.2, 1.0)) * rng.random())
            announced = rng.random() < 0.7
            if announced:
                run.expect("begin", lambda: client.begin(sandbox_id))
            try:
                if rng.random() < 0.3:
                    app.fork(timeout_s=60.0)
                app.ask(timeout_s=60.0)
                if rng.random() < 0.3:
                    app.touch(rng.randrange(1, 50))
            except Exception as error:
                run.failures.append(f"{sandbox_id}: {error!r}: {diagnosis(agent, sandbox_id, app)}")
                return
            run.count("request")
            if announced:
                run.expect("end", lambda: client.end(sandbox_id))


def meddle(run: Run, agent: AgentProcess, ids: list[str], rng: random.Random) -> None:
    """Random dedup and restore ops."""
    with agent.client() as client:
        while run.running():
            time.sleep(rng.uniform(0.0, 0.2))
            sandbox_id = rng.choice(ids)
            if rng.random() < 0.7:
                run.expect("dedup", lambda i=sandbox_id: client.dedup(i))
            else:
                eager = rng.random() < 0.5
                run.expect("restore", lambda i=sandbox_id, e=eager: client.restore(i, eager=e))


def kill(run: Run, cluster: Cluster, rng: random.Random) -> None:
    """kill -9 of an agent or the controller, and a start some time later."""
    while run.running():
        time.sleep(rng.uniform(0.5, 3.0))
        victim = rng.randrange(len(cluster.agents) + 1)
        if victim == len(cluster.agents):
            cluster.kill_controller()
            time.sleep(rng.uniform(0.0, 1.0))
            cluster.start_controller()
            run.count("controller killed")
        else:
            agent = cluster.agents[victim]
            agent.kill()
            time.sleep(rng.uniform(0.0, 1.0))
            agent.start()
            run.count("agent killed")


def restored(client: MedesClient, sandbox_id: str) -> bool:
    """Whether the sandbox has all its pages; only transient errors may stand in the way."""
    try:
        client.restore(sandbox_id, eager=True)
    except MedesError as error:
        assert error.code in EXPECTED, f"{sandbox_id}: {error!r}"
        return False
    return client.get(sandbox_id).state in (S.WARM, S.RUNNING)


@pytest.mark.timeout(LENGTH_S + 3 * JOIN_S)
def test_chaos(make_cluster: Callable[..., Cluster], make_app: Callable[..., App]) -> None:
    rng = seed.rng("chaos")
    cluster = make_cluster(nodes=2)
    placed: list[tuple[AgentProcess, str, App]] = []
    for n in range(6):
        agent, app = cluster.agents[n % 2], make_app(megabytes=3, seed=n)
        with agent.client() as client:
            client.register("counter", pids=[app.pid], sandbox_id=f"s{n}")
        placed.append((agent, f"s{n}", app))
    run = Run(time.monotonic() + LENGTH_S)
    threads = [
        threading.Thread(target=load, args=(run, *place, random.Random(rng.randrange(2**32))))
        for place in placed
    ]
    for agent in cluster.agents:
        ids = [sandbox_id for owner, sandbox_id, _ in placed if owner is agent]
        threads.append(
            threading.Thread(target=meddle, args=(run, agent, ids, random.Random(rng.randrange(2**32))))
        )
    threads.append(threading.Thread(target=kill, args=(run, cluster, random.Random(rng.randrange(2**32)))))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, run.end_s + JOIN_S - time.monotonic()))
        assert not thread.is_alive(), f"a thread hangs ({seed.TEXT})"
    print(run.counts)
    assert not run.failures, f"{seed.TEXT}:\n" + "\n".join(run.failures)
    assert run.counts.get("request", 0) > 0 and run.counts.get("agent killed", 0) > 0
    for agent, sandbox_id, app in placed:
        with agent.client() as client:
            with contextlib.suppress(MedesError):
                client.end(sandbox_id)
            wait_until(lambda c=client, i=sandbox_id: restored(c, i), f"{sandbox_id} restored at the end")
        app.ask()
