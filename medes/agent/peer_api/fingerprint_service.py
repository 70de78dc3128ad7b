"""Fingerprints of this node's bases for other agents, which look pages up in them without asking the controller.

They are not kept: each call reads the slab again, one call at a time, since that takes a core for as long.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from medes import native
from medes.agent.agent import Agent
from medes.agent.peer_api.peer_handlers import require_domain
from medes.errors import BusyError, InvalidArgumentError
from medes.limits import FINGERPRINT_CALLS_QUEUED_MAX, FINGERPRINT_PART_PAGES_MAX, NAME_CHARS_MAX

HASH_BYTES = 8


class FingerprintService:
    """Use from the agent's event loop."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._turn = asyncio.Lock()
        self._calls = 0  # under way, waiting and being sent

    async def parts(
        self, node_id: str, domain: str, base_id: int, samples_per_page: int
    ) -> AsyncGenerator[tuple[bytes, bytes]]:
        """Hashes and positions of a base that a node of this domain may pin anew, in pieces of at most
        FINGERPRINT_PART_PAGES_MAX pages, in order. Waits for the calls before it.

        Raises not_found (unknown, of another domain, retired), invalid_argument, busy.
        """
        for name in (node_id, domain):
            if not name or len(name) > NAME_CHARS_MAX:
                raise InvalidArgumentError("node and domain must be named", object=name[:50] or "(empty)")
        require_domain(self._agent, node_id, domain, [base_id])
        if not 1 <= samples_per_page <= native.MAX_SAMPLES:
            raise InvalidArgumentError(
                f"{samples_per_page} samples a page", object=node_id, hint=f"1 to {native.MAX_SAMPLES}"
            )
        if self._calls >= FINGERPRINT_CALLS_QUEUED_MAX:
            raise BusyError(f"{self._calls} calls wait for fingerprints", object=self._agent.node_id)
        self._calls += 1
        try:
            async with self._turn:
                # Only now: it may have been retired while others had their turn.
                (base,) = self._agent.bases.grantable(domain, [base_id], set())
                prints = await self._agent.in_ops(base.slab.fingerprint, samples_per_page)
            hashes, positions = prints.hashes, prints.positions
            step = FINGERPRINT_PART_PAGES_MAX * samples_per_page
            for first in range(0, len(positions), step):
                end = first + step
                yield hashes[first * HASH_BYTES : end * HASH_BYTES], positions[first:end]
        finally:
            self._calls -= 1
