"""Access to pages is a lease: kept by those who use it, taken back from those who are silent and have no pins."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from medes import native
from medes.agent.daemon import AgentDaemon
from medes.agent.peer_api.peer_handlers import PageAccessTable
from medes.agent.peer_client import PageAccess
from medes.certs.parties import node_server_name
from medes.errors import UnauthenticatedError
from tests.support.certificates import shown_as
from tests.support.manual_clock import ManualClock

MakeAgent = Callable[..., Awaitable[AgentDaemon]]


@pytest.fixture
async def holder(make_agent: MakeAgent) -> AgentDaemon:
    daemon = await make_agent("n0", page_lease_s=100.0)
    daemon.agent.clock = ManualClock()
    return daemon


def pages_of(daemon: AgentDaemon) -> PageAccessTable:
    assert daemon._pages is not None
    return daemon._pages


async def pass_time(daemon: AgentDaemon, seconds: float) -> None:
    clock = daemon.agent.clock
    assert isinstance(clock, ManualClock)
    await clock.advance(seconds)
    pages_of(daemon).reap()


def connects(access: PageAccess, node_id: str = "n1") -> bool:
    identity, holder = shown_as(node_id), node_server_name("n0")
    try:
        native.tcp_reader(
            access.page_address, access.token, attempts=1, identity=identity, server_name=holder
        ).close()
    except UnauthenticatedError:
        return False
    return True


async def test_a_silent_node_loses_its_token(holder: AgentDaemon) -> None:
    silent, kept = pages_of(holder).open("n1", "d"), pages_of(holder).open("n2", "d")
    await pass_time(holder, 60)
    pages_of(holder).keep("n2", ["d", "never opened"], [])
    await pass_time(holder, 60)
    assert not connects(silent)
    assert connects(kept, "n2")
    again = pages_of(holder).open("n1", "d")
    assert connects(again)


async def test_pins_keep_a_token_without_a_word(holder: AgentDaemon) -> None:
    access = pages_of(holder).open("n1", "d")
    holder.agent.pins.pin("n1", "sandbox", "d", [7])
    await pass_time(holder, 1000)
    assert connects(access)
    holder.agent.pins.unpin("n1", "sandbox", [7])
    await pass_time(holder, 0)
    assert not connects(access)


async def test_what_was_never_opened_is_not_kept_open(holder: AgentDaemon) -> None:
    pages_of(holder).keep("n1", ["d"], ["d"])
    for good in pages_of(holder).tokens.good("n1", "d"):
        assert not connects(PageAccess(good.token, pages_of(holder).address))
