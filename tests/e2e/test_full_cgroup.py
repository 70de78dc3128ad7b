"""A sandbox keeps its memory limit while it sleeps: what it touches waits for room, and it is not lost for that."""

from __future__ import annotations

import select
import sys
from collections.abc import Callable, Iterator

import pytest

from medes.types import SandboxState as S
from tests.fault.test_live_memory_limits import FORKER, HOG, MIB
from tests.support.cluster import Cluster, wait_until
from tests.support.live import Program
from tests.support.memory_cgroup import MemoryCgroup, memory_cgroup

pytestmark = pytest.mark.live
MakeCluster = Callable[..., Cluster]
WAIT_S = 60.0


@pytest.fixture
def group() -> Iterator[MemoryCgroup]:
    with memory_cgroup() as group:
        yield group


def test_a_sleeper_in_a_full_group_waits_for_room(make_cluster: MakeCluster, group: MemoryCgroup) -> None:
    cluster = make_cluster(nodes=1, controller=False, idle_period_s=3600, touches_per_s_max=1 << 18)
    group.limit(96 * MIB)
    with (
        Program([sys.executable, "-c", FORKER]) as program,
        Program([sys.executable, "-c", HOG]) as hog,
        cluster.agents[0].client() as client,
    ):
        # What both have was charged elsewhere before: the sandbox is evicted first, and comes back into this group.
        group.add(program.pid)
        group.add(hog.pid)
        client.register("f", pids=[program.pid], sandbox_id="a")
        client.dedup("a")
        hog.tell(str(76 * MIB))
        assert hog.hear() == "held"
        program.tell("check")
        wait_until(lambda: group.used_bytes() > 92 * MIB, "full", WAIT_S)
        seen = {client.get("a").state for _ in range(50)}
        assert seen == {S.DEDUP}
        assert hog.process.poll() is None
        assert program.process.stdout is not None
        assert not select.select([program.process.stdout], [], [], 0.0)[0], "what it touched cannot be there"
        hog.process.kill()
        assert program.hear() == "intact"
        wait_until(lambda: client.get("a").state is S.WARM, "whole: more than half of it was touched", WAIT_S)
        assert client.get("a").restore_count == 1
