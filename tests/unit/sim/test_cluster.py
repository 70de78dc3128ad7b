"""A whole cluster on simulated time: real agents and a real controller, exact to the microsecond, the same for a seed."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

from medes.sim.cluster import Happened, SimCluster
from medes.sim.loop import SimClock, run
from medes.types import SandboxState as S

IDLE_S, KEEP_DEDUP_S = 60.0, 7200.0
Course = Callable[[SimCluster], Awaitable[None]]


def simulate(course: Course, *, seed: int = 0, nodes: int = 3) -> list[Happened]:
    async def main(clock: SimClock) -> list[Happened]:
        with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="medes-test-") as folder:
            cluster = SimCluster(
                clock,
                Path(folder),
                nodes=nodes,
                seed=seed,
                idle_period_s=IDLE_S,
                keep_alive_period_s=3600.0,
                keep_dedup_period_s=KEEP_DEDUP_S,
            )
            await cluster.start()
            try:
                await course(cluster)
            finally:
                await cluster.stop()
            return cluster.trace

    return run(main)


async def half_an_hour(cluster: SimCluster) -> None:
    """A dozen sandboxes of three functions, asked every five minutes or so, for half an hour."""
    chance = random.Random(cluster.seed)

    async def user(node: str, name: str) -> None:
        own = random.Random(f"{cluster.seed} {name}")
        while True:
            await asyncio.sleep(own.expovariate(1 / 300))
            await cluster.request(node, name)

    users = []
    for number in range(12):
        node, name = f"n{chance.randrange(3)}", f"s{number}"
        await cluster.register(node, f"f{number % 3}", name)
        users.append(asyncio.create_task(user(node, name)))
    await cluster.clock.sleep(1800)
    ended = [u for u in users if u.done()]
    for one in users:
        one.cancel()
    await asyncio.gather(*users, return_exceptions=True)
    assert ended == []


def as_text(trace: list[Happened]) -> list[str]:
    return [f"{x.at_s:.6f} {x.node} {x.sandbox_id} {x.state.name} {x.reason}" for x in trace]


def in_a_process_of_its_own(seed: int, hash_seed: int) -> str:
    code = (
        "from tests.unit.sim.test_cluster import as_text, simulate, half_an_hour\n"
        f"print('\\n'.join(as_text(simulate(half_an_hour, seed={seed}))))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed)}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=120
    ).stdout


def test_the_same_seed_is_the_same_course_of_events() -> None:
    one, again, other = (in_a_process_of_its_own(s, h) for s, h in ((1, 1), (1, 2), (2, 1)))
    assert len(one.splitlines()) > 100
    assert one == again
    assert one != other


def test_periods_are_kept_exactly() -> None:
    async def course(cluster: SimCluster) -> None:
        await cluster.register("n0", "f", "s", purge_kills=True)
        await cluster.clock.sleep(IDLE_S + KEEP_DEDUP_S + 5)

    when = {x.state: x.at_s for x in simulate(course) if x.sandbox_id == "s"}
    registered_s = when[S.WARM]
    assert IDLE_S <= when[S.DEDUP] - registered_s < IDLE_S + 0.01  # and the op's own time
    assert KEEP_DEDUP_S <= when[S.PURGED] - when[S.DEDUP] < KEEP_DEDUP_S + 0.01


def test_one_base_serves_the_cluster_and_every_byte_comes_back() -> None:
    async def course(cluster: SimCluster) -> None:
        for number in range(6):
            await cluster.register(f"n{number % 3}", "f", f"s{number}")
        await cluster.clock.sleep(2 * IDLE_S)
        bases = [b for n in cluster.nodes.values() for b in n.running.bases.bases.values()]
        assert len(bases) == 1
        for number in range(6):  # the handle compares every page with what the program had
            await cluster.request(f"n{number % 3}", f"s{number}")
        assert all(not p.out for n in cluster.nodes.values() for p in n.machine.programs.values())

    simulate(course)


def test_a_killed_agent_s_sandboxes_are_taken_back() -> None:
    async def course(cluster: SimCluster) -> None:
        await cluster.register("n0", "f", "s")
        await cluster.clock.sleep(2 * IDLE_S)
        node = cluster.nodes["n0"]
        assert node.running.entry("s").state is S.DEDUP
        await node.kill()
        await cluster.clock.sleep(30)
        await node.start()
        await node.running.controller.joined_once.wait()
        assert node.running.entry("s").state is S.DEDUP
        await cluster.request("n0", "s")
        assert node.running.entry("s").state is S.WARM

    simulate(course)


def test_a_new_controller_and_a_healed_network_know_all_again() -> None:
    async def course(cluster: SimCluster) -> None:
        for number in range(3):
            await cluster.register(f"n{number}", "f", f"s{number}")
        await cluster.clock.sleep(2 * IDLE_S)
        cluster.start_controller()
        await cluster.clock.sleep(30)
        assert cluster.controller.statistics().nodes_alive == 3
        assert cluster.controller.statistics().bases == 1
        cluster.network.cut("n1")
        await cluster.clock.sleep(60)
        assert cluster.controller.statistics().nodes_alive == 2
        cluster.network.heal("n1")
        await cluster.clock.sleep(60)
        assert cluster.controller.statistics().nodes_alive == 3

    simulate(course)


def test_lost_messages_cost_no_more_than_their_deadlines() -> None:
    """A node that does not hear the controller counts as dead there, works on, and is known again."""

    async def course(cluster: SimCluster) -> None:
        await cluster.register("n0", "f", "s0")
        await cluster.register("n1", "f", "s1")
        await cluster.clock.sleep(IDLE_S / 2)
        cluster.network.lose("n1", "controller")
        await cluster.clock.sleep(2 * IDLE_S)
        assert cluster.controller.statistics().nodes_alive == 2
        assert cluster.nodes["n1"].running.entry("s1").state is S.DEDUP
        await cluster.request("n1", "s1")
        cluster.network.find_again("n1", "controller")
        await cluster.clock.sleep(60)
        assert cluster.controller.statistics().nodes_alive == 3
        cluster.network.lose("n0", "n1")
        await cluster.clock.sleep(3 * IDLE_S)
        for node, name in (("n0", "s0"), ("n1", "s1")):
            await cluster.request(node, name)
            assert cluster.nodes[node].running.entry(name).state is S.WARM

    simulate(course)
