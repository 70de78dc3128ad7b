"""What the agent tells of a sandbox's memory is what the kernel charges its cgroup for, in every state."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
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
AGREE_S = 90.0
# What the program itself may take or give back between the two readings: the interpreter's arenas come in 64 pages.
APART_BYTES_MAX = 64 * native.PAGE_BYTES


@pytest.fixture
def group() -> Iterator[MemoryCgroup]:
    with memory_cgroup() as group:
        yield group


def born_in(group: MemoryCgroup) -> Program:
    """In the group before it has any memory, so that all of it is charged there."""
    enter = f'echo $$ > {group.folder}/cgroup.procs && exec "$0" "$@"'
    return Program(["/bin/sh", "-c", enter, sys.executable, "-c", PYTHON_PROGRAM])


def file_bytes(pid: int) -> int:
    """Pages of files that only this process maps: with its private memory, but charged as the files' cache."""
    fields = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, _, rest = line.partition(":")
        fields[name] = int(rest.split()[0]) * 1024
    return fields["Private_Clean"] + fields["Private_Dirty"] - fields["Anonymous"]


def agreed(client: MedesClient, group: MemoryCgroup, pid: int, state: S) -> Sandbox:
    """The sandbox in this state, once the agent's figure and the kernel's are the same."""
    apart = 0

    def agree() -> Sandbox | None:
        nonlocal apart
        before, files = client.get("a"), file_bytes(pid)
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
        warm = agreed(client, group, program.pid, S.WARM)
        client.dedup("a")
        asleep = agreed(client, group, program.pid, S.DEDUP)
        assert asleep.present_bytes < warm.present_bytes // 2
        assert asleep.kept_bytes > asleep.present_bytes >= asleep.touched_bytes
        assert program.ask("exec len(big[0]) + sum(b[0] for b in big[:1000]) > 0") == "True"
        touched = agreed(client, group, program.pid, S.DEDUP)
        assert touched.touched_bytes > asleep.touched_bytes
        assert touched.present_bytes > asleep.present_bytes
        client.restore("a", eager=True)
        again = agreed(client, group, program.pid, S.WARM)
        assert again.touched_bytes == 0
        # What it touched is left to it next time, and told as its tick set, by the next agent too.
        client.dedup("a")
        ticking = agreed(client, group, program.pid, S.DEDUP)
        assert 0 < ticking.tick_bytes <= ticking.present_bytes
        cluster.agents[0].kill()
        cluster.agents[0].start()
        with cluster.agents[0].client() as client:
            wait_until(lambda: client.get("a").waiting == "", "taken back")
            adopted = agreed(client, group, program.pid, S.DEDUP)
            assert adopted.tick_bytes == ticking.tick_bytes
            assert program.ask("check") == "intact"
