"""What the agent tells of a sandbox's memory is what the kernel charges its cgroup for, in every state."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import cast

import pytest

from medes import native
from medes.client import MedesClient
from medes.types import Sandbox
from medes.types import SandboxState as S
from tests.support.cluster import Cluster, wait_until
from tests.support.live import PYTHON_PROGRAM, Program
from tests.support.memory_cgroup import MemoryCgroup, memory_cgroup

pytestmark = pytest.mark.live
MakeCluster = Callable[..., Cluster]
# The kernel sums up its counters now and then, and every 2 s; the agent weighs a sleeper every 30 s.
SHARED_BYTES = 16 << 20
AGREE_S = 90.0
# What the program itself may take or give back between the two readings: the interpreter's arenas come in 64 pages.
APART_BYTES_MAX = 64 * native.PAGE_BYTES

# Two processes that share 16 MiB since a fork, and go on sharing them.
TREE = """
import hashlib, os, sys
data = os.urandom(16 << 20)
digest = hashlib.sha256(data).hexdigest()
def state():
    return "intact" if hashlib.sha256(data).hexdigest() == digest else "BROKEN"
ask, answer = os.pipe(), os.pipe()
if os.fork() == 0:
    os.close(ask[1])  # it ends with its parent
    while os.read(ask[0], 1):
        os.write(answer[1], state().encode())
    os._exit(0)
print("ready", flush=True)
for number, line in enumerate(sys.stdin):
    os.write(ask[1], b"?")
    print(number, state(), os.read(answer[0], 6).decode(), flush=True)
"""


@pytest.fixture
def group() -> Iterator[MemoryCgroup]:
    with memory_cgroup() as group:
        yield group


def born_in(group: MemoryCgroup, code: str = PYTHON_PROGRAM) -> Program:
    """In the group before it has any memory, so that all of it is charged there."""
    enter = f'echo $$ > {group.folder}/cgroup.procs && exec "$0" "$@"'
    return Program(["/bin/sh", "-c", enter, sys.executable, "-c", code])


def file_bytes(pids: Iterable[int]) -> int:
    """Clean pages that only one process maps: with its private memory, but charged as the cache of files. What is of no file
    is dirty in the kernel's eyes as long as it was never swapped out."""
    rollups = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in pids]
    lines = [line.split() for text in rollups for line in text.splitlines()]
    return sum(int(line[1]) * 1024 for line in lines if line[0] == "Private_Clean:")


def agreed(client: MedesClient, group: MemoryCgroup, state: S) -> Sandbox:
    """The sandbox in this state, once the agent's figure and the kernel's are the same."""
    apart = 0

    def agree() -> Sandbox | None:
        nonlocal apart
        before, files = client.get("a"), file_bytes(group.pids())
        charged, after = group.anonymous_bytes(), client.get("a")
        apart = after.present_bytes - files - charged
        settled = before.present_bytes == after.present_bytes and before.state is after.state is state
        return after if settled and abs(apart) <= APART_BYTES_MAX else None

    try:
        return cast(Sandbox, wait_until(agree, f"{state.label}: told as charged", AGREE_S))
    finally:
        print(f"{state.label}: {apart} bytes apart")  # shown where it fails


def test_the_kernel_charges_what_is_told_as_present(make_cluster: MakeCluster, group: MemoryCgroup) -> None:
    cluster = make_cluster(nodes=1, controller=False, idle_period_s=3600, touches_per_s_max=1 << 18)
    with born_in(group) as program, cluster.agents[0].client() as client:
        client.register("f", pids=[program.pid], sandbox_id="a")
        warm = agreed(client, group, S.WARM)
        client.dedup("a")
        asleep = agreed(client, group, S.DEDUP)
        assert asleep.present_bytes < warm.present_bytes // 2
        assert asleep.kept_bytes > asleep.present_bytes >= asleep.touched_bytes
        assert program.ask("exec len(big[0]) + sum(b[0] for b in big[:1000]) > 0") == "True"
        touched = agreed(client, group, S.DEDUP)
        assert touched.touched_bytes > asleep.touched_bytes
        assert touched.present_bytes > asleep.present_bytes
        client.dedup("a")  # it sleeps already: what it touched goes again, as far as it was not written
        reclaimed = agreed(client, group, S.DEDUP)
        assert reclaimed.touched_bytes < touched.touched_bytes
        assert reclaimed.present_bytes < touched.present_bytes
        client.restore("a", eager=True)
        again = agreed(client, group, S.WARM)
        assert again.touched_bytes == 0
        # What it touched is left to it next time, and told as its tick set, by the next agent too.
        client.dedup("a")
        ticking = agreed(client, group, S.DEDUP)
        assert 0 < ticking.tick_bytes <= ticking.present_bytes
        cluster.agents[0].kill()
        cluster.agents[0].start()
        with cluster.agents[0].client() as client:
            wait_until(lambda: client.get("a").waiting == "", "taken back")
            adopted = agreed(client, group, S.DEDUP)
            assert adopted.tick_bytes == ticking.tick_bytes
            assert program.ask("check") == "intact"


@pytest.mark.parametrize("fork_sharers_max", [1, 2])
def test_what_is_shared_since_a_fork_is_told_as_often_as_it_is_there(
    make_cluster: MakeCluster, group: MemoryCgroup, fork_sharers_max: int
) -> None:
    """Once before the op. It stays, or is there twice after a restore: the kernel shares nothing anew."""
    cluster = make_cluster(
        nodes=1,
        controller=False,
        idle_period_s=3600,
        touches_per_s_max=1 << 18,
        fork_sharers_max=fork_sharers_max,
    )
    with born_in(group, TREE) as program, cluster.agents[0].client() as client:
        client.register("tree", pids=[program.pid], sandbox_id="a")
        warm = agreed(client, group, S.WARM)
        client.dedup("a")
        asleep = agreed(client, group, S.DEDUP)
        assert (asleep.present_bytes < warm.present_bytes - SHARED_BYTES // 2) == (fork_sharers_max > 1)
        client.restore("a", eager=True)
        again = agreed(client, group, S.WARM)
        assert (again.present_bytes > warm.present_bytes + SHARED_BYTES // 2) == (fork_sharers_max > 1)
        assert program.ask("check") == "intact intact"
