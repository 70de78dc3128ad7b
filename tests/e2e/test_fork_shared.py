"""Sandboxes whose processes share pages since a fork: a restore gives each a copy, so not all of them may go."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from medes.types import Sandbox
from tests.support.cluster import AgentProcess, Cluster
from tests.support.fork_pool import WORKERS, ForkPool
from tests.support.memory_cgroup import memory_cgroup

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(os.geteuid() != 0, reason="page frames are shown to root only"),
]

MakeCluster = Callable[..., Cluster]
MEGABYTES = 24
DATA_BYTES = MEGABYTES << 20


@pytest.fixture
def agent(make_cluster: MakeCluster) -> AgentProcess:
    return make_cluster(nodes=1, controller=False).agents[0]


def dedup(agent: AgentProcess, pool: ForkPool, pids: list[int]) -> tuple[Sandbox, str]:
    """A dedup op, a restore, and the check of all data: the sandbox as it was dedup'd, and what the op noted."""
    pool.ask()
    with agent.client() as client:
        client.register("pool", pids=pids, sandbox_id="a")
        dedupd = client.dedup("a").sandbox
        pool.ask()
        client.restore("a", eager=True)
        pool.ask()
    assert dedupd.last_dedup is not None
    return dedupd, "; ".join(map(str, dedupd.last_dedup.notes))


def test_a_small_pool_is_copied(agent: AgentProcess) -> None:
    with ForkPool(MEGABYTES) as pool:
        before = pool.held_bytes()
        sandbox, notes = dedup(agent, pool, [pool.process.pid])
        assert "stay" not in notes
        assert sandbox.last_dedup is not None
        assert sum(sandbox.last_dedup.pages_by_kind) > (WORKERS + 1) * DATA_BYTES // 4096
        assert (
            pool.held_bytes() > before + 0.9 * WORKERS * DATA_BYTES
        )  # the price, where there is room for it


def test_a_pool_whose_copies_do_not_fit_its_memory_limit_keeps_what_it_shares(agent: AgentProcess) -> None:
    with memory_cgroup() as group, ForkPool(MEGABYTES) as pool:
        for pid in pool.pids:
            group.add(pid)
        before = pool.held_bytes()
        group.limit(before + 2 * DATA_BYTES)
        _, notes = dedup(agent, pool, [pool.process.pid])
        assert "would not fit its memory limit" in notes
        assert pool.process.poll() is None and len(pool.pids) == WORKERS + 1
        assert pool.held_bytes() < before + DATA_BYTES // 2


def test_pages_of_more_sharers_than_are_allowed_stay(agent: AgentProcess) -> None:
    agent.end()
    agent.set(fork_sharers_max=WORKERS)
    agent.start()
    with ForkPool(MEGABYTES) as pool:
        before = pool.held_bytes()
        _, notes = dedup(agent, pool, [pool.process.pid])
        assert "its processes share them since a fork" in notes
        assert pool.held_bytes() < before + DATA_BYTES // 2


def test_pages_that_others_have_too_stay(agent: AgentProcess) -> None:
    """One worker is the sandbox: giving its pages up would free nothing, and cost a copy later."""
    with ForkPool(MEGABYTES) as pool:
        before = pool.held_bytes()
        _, notes = dedup(agent, pool, [pool.pids[-1]])
        assert "processes outside the sandbox share them" in notes
        assert pool.held_bytes() < before + DATA_BYTES // 2
