"""Access to pages of other nodes is leased: readers say what they use, holders take back what nobody uses."""

from __future__ import annotations

import functools
import logging

from medes.agent.agent import Agent
from medes.agent.ops.op_pins import own_pins_at
from medes.agent.peer_api.peer_handlers import PageAccessTable

log = logging.getLogger(__name__)

TELLS_PER_LEASE = 4  # so that some may be lost
TELL_S_MAX = 10.0  # the answers say how many share the bases that are used there, which reports go by


def pinned_at(agent: Agent, node_id: str) -> set[int]:
    """The bases this node pins at another, for sandboxes and for dedup ops under way."""
    pins = own_pins_at(agent, node_id)
    return {base_id for _, base_ids in pins.values() for base_id in base_ids}


async def run(agent: Agent, pages: PageAccessTable) -> None:
    """Ends when cancelled."""
    while True:
        settings = agent.settings
        await agent.clock.sleep(
            min(TELL_S_MAX, settings.page_lease_s / TELLS_PER_LEASE, settings.page_token_s)
        )
        try:
            pages.reap()
            agent.peers.forget_bases(functools.partial(pinned_at, agent))
            await agent.peers.keep_pages()
        except Exception:  # peers would take this node for dead
            log.exception("page leases")
