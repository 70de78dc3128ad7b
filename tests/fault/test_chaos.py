"""A cluster under request load with random dedup, restore, register and purge in every state, while sandboxes, agents and
controller are killed or ended at random, peers go away, and a line of a journal is damaged now and then.

Every response is checked against the sandbox's own state: nothing lost, or the run fails. At the end nothing may be
left over: no slot, descriptor, file, pin or task. MEDES_SEED fixes the seed, MEDES_CHAOS_S the length (default: a short
round, which is part of `make test`).
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from medes.agent.journal.journal import decode_line
from medes.client import MedesClient
from medes.errors import MedesError
from medes.types import SandboxState as S
from tests.support import seed
from tests.support.cluster import AgentProcess, Cluster, wait_until
from tests.support.counter_app import App
from tests.support.leftovers import left_over
from tests.support.ports import free_port

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.chaos]

LENGTH_S = float(os.environ.get("MEDES_CHAOS_S", "12"))
END_S = 20.0  # for SIGTERM, in whatever state
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
    # Warm sandboxes whose registration line was damaged: their agent does not know them until they register again.
    forgotten: set[str] = field(default_factory=set)

    def running(self) -> bool:
        return time.monotonic() < self.end_s and not self.failures

    def count(self, what: str) -> None:
        with self.lock:
            self.counts[what] = self.counts.get(what, 0) + 1

    def expect(self, what: str, call: Callable[[], object], sandbox_id: str = "", also: str = "") -> str:
        """Counts the outcome and returns its code, "" without error; an unexpected error ends the run."""
        try:
            call()
            self.count(what)
            return ""
        except MedesError as error:
            self.count(f"{what}: {error.code}")
            unknown = error.code == "not_found" and sandbox_id in self.forgotten
            if error.code not in EXPECTED and not unknown and error.code not in also.split():
                self.failures.append(f"{what} {sandbox_id}: {error!r} {error}")
            return error.code


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
                run.expect("begin", lambda: client.begin(sandbox_id), sandbox_id)
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
                run.expect("end", lambda: client.end(sandbox_id), sandbox_id)


def meddle(run: Run, agent: AgentProcess, ids: list[str], rng: random.Random) -> None:
    """Random dedup and restore ops."""
    with agent.client() as client:
        while run.running():
            time.sleep(rng.uniform(0.0, 0.2))
            sandbox_id = rng.choice(ids)
            if rng.random() < 0.7:
                run.expect("dedup", lambda i=sandbox_id: client.dedup(i), sandbox_id)
            else:
                eager = rng.random() < 0.5
                run.expect("restore", lambda i=sandbox_id, e=eager: client.restore(i, eager=e), sandbox_id)


def churn(run: Run, agent: AgentProcess, make_app: Callable[..., App], name: str, rng: random.Random) -> None:
    """Short lives: register, an op or two, then a purge in whatever state that is, or a SIGKILL."""
    lives = 0
    while run.running():
        lives += 1
        sandbox_id, kills = f"{name}-{lives}", rng.random() < 0.6
        with make_app(megabytes=1, seed=lives) as app, agent.client() as client:
            while failed := run.expect(
                "register",
                lambda i=sandbox_id, p=app.pid, k=kills: client.register(
                    "counter", pids=[p], sandbox_id=i, purge_kills=k
                ),
            ):
                if not run.running():
                    break
                time.sleep(0.2)
            if failed:
                return
            ops = [
                threading.Thread(target=one_op, args=(run, agent, sandbox_id, rng.choice(("dedup", "wake"))))
                for _ in range(rng.randrange(4))
            ]
            for op in ops:
                op.start()
                time.sleep(rng.random() * rng.choice((0.02, 0.3)))
            killed = rng.random() < 0.15
            if killed:
                app.process.kill()
                run.count("sandbox killed")
            gone = False
            while not gone and not run.failures and time.monotonic() < run.end_s + JOIN_S / 2:
                also = "not_found process_gone lost"  # the last of one that was just killed
                code = run.expect("purge", lambda i=sandbox_id: client.purge(i), sandbox_id, also)
                gone = code in ("", "not_found")
                time.sleep(0.0 if gone else 0.2)
            for op in ops:
                op.join(JOIN_S / 2)
            if kills and gone:
                wait_until(lambda a=app: not a.alive(), f"{sandbox_id} ended by its purge")
            elif gone and not killed:
                try:
                    app.ask(timeout_s=60.0)
                except Exception as error:
                    run.failures.append(f"{sandbox_id}: {error!r}: {diagnosis(agent, sandbox_id, app)}")
                    return
                run.count("answer after purge")


def one_op(run: Run, agent: AgentProcess, sandbox_id: str, what: str) -> None:
    """On a sandbox that may be purged or killed meanwhile."""
    also = "not_found process_gone lost unsupported"  # the last: some of its threads have exited already
    with agent.client() as client:
        if what == "dedup":
            run.expect("dedup", lambda: client.dedup(sandbox_id), sandbox_id, also)
        else:
            run.expect("restore", lambda: client.restore(sandbox_id), sandbox_id, also)


def damage(agent: AgentProcess, rng: random.Random) -> str:
    """Damages one line of the journal of an agent that does not run; the sandbox that is forgotten by it, if any."""
    path = agent.state_dir / "journal"
    lines = path.read_bytes().splitlines(keepends=True)
    n = rng.randrange(len(lines))
    record = decode_line(lines[n].rstrip(b"\n")) or {}
    at = rng.randrange(len(lines[n]) - 1)
    lines[n] = lines[n][:at] + bytes([lines[n][at] ^ 1]) + lines[n][at + 1 :]
    path.write_bytes(b"".join(lines))
    return str(record["spec"]["sandbox_id"]) if record.get("t") == "sandbox" else ""


def kill(run: Run, cluster: Cluster, placed: list[tuple[AgentProcess, str, App]], rng: random.Random) -> None:
    """kill -9 or SIGTERM of an agent, kill -9 of the controller, and a start some time later."""
    while run.running():
        time.sleep(rng.uniform(0.5, 3.0))
        victim = rng.randrange(len(cluster.agents) + 1)
        if victim == len(cluster.agents):
            cluster.kill_controller()
            time.sleep(rng.uniform(0.0, 1.0))
            cluster.start_controller()
            run.count("controller killed")
            continue
        agent = cluster.agents[victim]
        number = rng.choice((signal.SIGKILL, signal.SIGTERM))
        agent.end(number, timeout_s=END_S)
        run.count(f"agent {number.name}")
        time.sleep(rng.choice((rng.uniform(0.0, 1.0), rng.uniform(0.0, 8.0))))
        if rng.random() < 0.4 and (forgotten := damage(agent, rng)):
            run.forgotten.add(forgotten)
        agent.start()
        register_again(run, agent, placed)


def register_again(run: Run, agent: AgentProcess, placed: list[tuple[AgentProcess, str, App]]) -> None:
    """As a runtime would for those that its agent does not know."""
    with agent.client() as client:
        # A channel to this address may still be in the pause after its last failure.
        wait_until(lambda: run.expect("list", client.list) == "", "it answers")
        known = {s.sandbox_id for s in client.list()}
        for owner, sandbox_id, app in placed:
            if owner is agent and sandbox_id not in known:
                if sandbox_id not in run.forgotten:
                    run.failures.append(f"{sandbox_id} is forgotten: {agent.log_tail()}")
                run.count("registered again")
                run.expect(
                    "register",
                    lambda i=sandbox_id, p=app.pid: client.register("counter", pids=[p], sandbox_id=i),
                )


def guarded(run: Run, work: Callable[..., None], *arguments: object) -> None:
    """So that a failed assertion in a thread ends the run."""
    try:
        work(run, *arguments)
    except Exception as error:
        run.failures.append(f"{work.__name__}: {error!r}")


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
    metrics = {agent.node_id: f"127.0.0.1:{free_port()}" for agent in cluster.agents}
    for agent in cluster.agents:
        agent.set(metrics_address=metrics[agent.node_id])
        agent.end()
        agent.start()
    placed: list[tuple[AgentProcess, str, App]] = []
    for n in range(6):
        agent, app = cluster.agents[n % 2], make_app(megabytes=3, seed=n)
        with agent.client() as client:
            client.register("counter", pids=[app.pid], sandbox_id=f"s{n}")
        placed.append((agent, f"s{n}", app))
    run = Run(time.monotonic() + LENGTH_S)
    work: list[tuple[object, ...]] = [(load, *place) for place in placed]
    for agent in cluster.agents:
        work.append((meddle, agent, [sandbox_id for owner, sandbox_id, _ in placed if owner is agent]))
        work.append((churn, agent, App, f"c-{agent.node_id}"))
    work.append((kill, cluster, placed))
    threads = []
    for function, *arguments in work:
        own = random.Random(rng.randrange(2**32))
        threads.append(threading.Thread(target=guarded, args=(run, function, *arguments, own)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, run.end_s + JOIN_S - time.monotonic()))
        assert not thread.is_alive(), f"a thread hangs ({seed.TEXT})"
    print(run.counts)
    assert not run.failures, f"{seed.TEXT}:\n" + "\n".join(run.failures)
    assert run.counts.get("request", 0) > 0 and run.counts.get("purge", 0) > 0
    assert run.counts.get("agent SIGKILL", 0) + run.counts.get("agent SIGTERM", 0) > 0
    for agent, sandbox_id, app in placed:
        with agent.client() as client:
            with contextlib.suppress(MedesError):
                client.end(sandbox_id)
            wait_until(lambda c=client, i=sandbox_id: restored(c, i), f"{sandbox_id} restored at the end")
        app.ask()
    for agent, sandbox_id, app in placed:
        with agent.client() as client:
            client.purge(sandbox_id)
        app.ask()
    for agent in cluster.agents:
        address = metrics[agent.node_id]
        with contextlib.suppress(AssertionError):
            wait_until(lambda a=agent, m=address: not left_over(a, m), "nothing is left", 60.0)
        assert left_over(agent, address) == {}, f"{agent.node_id} ({seed.TEXT})"
