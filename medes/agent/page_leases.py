"""Access to pages of other nodes is leased: readers say what they use, holders take back what nobody uses."""

from __future__ import annotations

import logging

from medes.agent.core import Agent
from medes.agent.peer_handlers import PageAccessTable

log = logging.getLogger(__name__)

TELLS_PER_LEASE = 4  # so that some may be lost


async def run(agent: Agent, pages: PageAccessTable) -> None:
    """Ends when cancelled."""
    while True:
        await agent.clock.sleep(agent.settings.page_lease_s / TELLS_PER_LEASE)
        try:
            pages.reap()
            await agent.peers.keep_pages()
        except Exception:  # peers would take this node for dead
            log.exception("page leases")
