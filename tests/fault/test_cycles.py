"""Thousands of short lives on one agent: register, ops in every order, and in the middle of them a purge or a SIGKILL.

Afterwards nothing may be left of them: no admission slot, descriptor, file, pin, task; nor may any of it wait for Python's
garbage collector, which on an idle agent may never come. MEDES_SEED fixes the seed, MEDES_CYCLES the number of lives.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable

import pytest

from medes.client import MedesClient
from medes.errors import MedesError
from medes.types import LifecycleSettings
from medes.types import SandboxState as S
from tests.support import seed
from tests.support.cluster import WITHOUT_COLLECTOR, AgentProcess, Cluster, wait_until
from tests.support.leftovers import left_over
from tests.support.ports import free_port

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.chaos]

LIVES = int(os.environ.get("MEDES_CYCLES", "2000"))
THREADS = 6
SLOTS = 3  # fewer than threads, so that a leak of one is felt by the others
# What an op on a sandbox that is purged, killed or used by others meanwhile may answer.
EXPECTED = {"busy", "cancelled", "wrong_state", "not_found", "process_gone"}
OFF = LifecycleSettings(disabled=True)


def op(client: MedesClient, sandbox_id: str, what: str) -> None:
    if what == "dedup":
        client.dedup(sandbox_id)
    elif what == "begin":
        client.begin(sandbox_id)
        client.end(sandbox_id)
    else:
        client.restore(sandbox_id, eager=what == "eager")


def live(client: MedesClient, name: str, rng: random.Random, outcomes: Counter[str]) -> None:
    """One life of one process; everything that is asked of it answers, whatever it answers."""
    sandbox_id, kills = f"{name}-{rng.randrange(2**40):x}", rng.random() < 0.5
    process = subprocess.Popen(["sleep", "3600"])
    try:
        client.register("f", pids=[process.pid], sandbox_id=sandbox_id, purge_kills=kills, lifecycle=OFF)
        ops = ["dedup", *rng.choices(("dedup", "lazy", "eager", "begin"), k=rng.randrange(4))]

        def work() -> None:
            for what in ops:
                try:
                    op(client, sandbox_id, what)
                    outcomes[what] += 1
                except MedesError as error:
                    outcomes[f"{what}: {error.code}"] += 1

        worker = threading.Thread(target=work)
        worker.start()
        # Somewhere in the middle of the ops, most of which take some milliseconds; or after the last one.
        worker.join(rng.choice((0.0, 0.02 * rng.random(), 0.1 * rng.random(), 60.0)))
        if rng.random() < 0.3:
            process.kill()
            outcomes["killed"] += 1
        with contextlib.suppress(MedesError):
            outcomes[f"purged as {client.get(sandbox_id).state.label}"] += 1
        purge(client, sandbox_id, outcomes)
        worker.join(60.0)
        assert not worker.is_alive(), f"{sandbox_id}: an op has no end"
        assert process.poll() is not None or not kills or gone(process), f"{sandbox_id}: purged and alive"
    finally:
        process.kill()
        process.wait(10)


def purge(client: MedesClient, sandbox_id: str, outcomes: Counter[str]) -> None:
    """Until it is gone; it may be busy with what began before."""
    for _ in range(200):
        try:
            client.purge(sandbox_id)
            return
        except MedesError as error:
            outcomes[f"purge: {error.code}"] += 1
            if error.code == "not_found":
                return
            time.sleep(0.02)
    raise AssertionError(f"{sandbox_id} cannot be purged")


def gone(process: subprocess.Popen[bytes]) -> bool:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(10)
    return process.poll() is not None


@pytest.mark.timeout(120 + LIVES)
def test_thousands_of_lives_leave_nothing(make_cluster: Callable[..., Cluster]) -> None:
    rng = seed.rng("cycles")
    metrics = f"127.0.0.1:{free_port()}"
    cluster = make_cluster(
        nodes=1, controller=False, metrics_address=metrics, restores_concurrent_max=SLOTS, log_level="warning"
    )
    agent: AgentProcess = cluster.agents[0]
    agent.end()
    agent.program = WITHOUT_COLLECTOR
    agent.start()
    keep = subprocess.Popen(["sleep", "3600"])
    outcomes: Counter[str] = Counter()
    failures: list[str] = []

    def lives(number: int, own: random.Random) -> None:
        try:
            with agent.client() as client:
                for _ in range(LIVES // THREADS):
                    if failures:
                        return
                    live(client, f"t{number}", own, outcomes)
        except Exception as error:
            failures.append(f"{error!r}")

    try:
        with agent.client() as client:
            client.register("f", pids=[keep.pid], sandbox_id="keep", lifecycle=OFF)
            client.dedup("keep", make_base=True)  # what the others refer to
            threads = [
                threading.Thread(target=lives, args=(n, random.Random(rng.randrange(2**32))))
                for n in range(THREADS)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            print(dict(outcomes))
            assert not failures, f"{seed.TEXT}: {failures}"
            unforeseen = {x for x in outcomes if ": " in x and x.split(": ")[1] not in EXPECTED}
            assert not unforeseen, f"{seed.TEXT}: {unforeseen}"
            assert outcomes["purged as restoring"] and outcomes["purged as deduping"] and outcomes["killed"]
            # An untouched one still gets its turn.
            assert client.restore("keep", eager=True).sandbox.state is S.WARM
            client.purge("keep")
            with contextlib.suppress(AssertionError):
                wait_until(lambda: not left_over(agent, metrics), "nothing is left", 60.0)
            assert left_over(agent, metrics) == {}, seed.TEXT
    finally:
        keep.kill()
        keep.wait(10)
