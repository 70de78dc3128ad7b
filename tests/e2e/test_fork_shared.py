"""Sandboxes whose processes share pages since a fork: a restore gives each a copy, so these stay unless told otherwise."""

from __future__ import annotations

import os
import re
from collections.abc import Callable

import pytest

from medes import native
from medes.types import Sandbox
from tests.support.cluster import AgentProcess, Cluster
from tests.support.fork_pool import WORKERS, ForkPool
from tests.support.memory_cgroup import memory_cgroup
from tests.support.prefork_servers import SERVERS, prefork_server

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(os.geteuid() != 0, reason="page frames are shown to root only"),
]

MakeCluster = Callable[..., Cluster]
MEGABYTES = 24
DATA_BYTES = MEGABYTES << 20
CYCLES = 3
# The driver's own memory in each process, for good (native/tracing/injection_area.h).
AREA_PAGES = 5


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


def shared_pages(notes: str) -> int:
    found = re.search(r"(\d+) pages stay: its processes share them since a fork", notes)
    assert found, notes
    return int(found[1])


def test_a_pool_holds_no_more_afterwards_than_before(agent: AgentProcess) -> None:
    with ForkPool(MEGABYTES) as pool:
        pool.ask()
        before = pool.held_bytes()
        for _ in range(CYCLES):
            _, notes = dedup(agent, pool, [pool.process.pid])
            assert shared_pages(notes) > 0.9 * DATA_BYTES // native.PAGE_BYTES
            allowed_pages = AREA_PAGES * len(pool.pids) + shared_pages(notes) // 4  # it writes to some itself
            assert pool.held_bytes() <= before + allowed_pages * native.PAGE_BYTES


@pytest.mark.parametrize("name", SERVERS)
def test_a_server_holds_no_more_afterwards_than_before(agent: AgentProcess, name: str) -> None:
    """A copy in one process each would be as many pages as are shared. A quarter of that is left to what the server
    writes itself: a collector of garbage counts in shared pages now and then."""
    with prefork_server(name) as server, agent.client() as client:
        server.ask()
        before = native.private_bytes(server.pids)
        client.register("server", pids=[server.pid], sandbox_id="a")
        for _ in range(CYCLES):
            dedupd = client.dedup("a").sandbox
            assert native.private_bytes(server.pids) < 0.8 * before
            assert dedupd.last_dedup is not None
            shared = shared_pages("; ".join(map(str, dedupd.last_dedup.notes)))
            client.restore("a", eager=True)
            server.ask()
            allowed_pages = AREA_PAGES * len(server.pids) + shared // 4
            assert native.private_bytes(server.pids) <= before + allowed_pages * native.PAGE_BYTES


def test_a_small_pool_is_copied_where_that_is_allowed(agent: AgentProcess) -> None:
    agent.end()
    agent.set(fork_sharers_max=8)
    agent.start()
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
    agent.end()
    agent.set(fork_sharers_max=8)
    agent.start()
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
