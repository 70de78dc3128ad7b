"""Where base pages for an image may lie: the node's own index first, the controller for what is left."""

from __future__ import annotations

import logging

from medes import native
from medes.agent.controller_client import Lookup
from medes.agent.core import Agent
from medes.errors import MedesError
from medes.limits import LOOKUP_PAGES_MAX
from medes.types import BaseDescriptor, NodeEndpoints

log = logging.getLogger(__name__)

# The controller is asked when more than this share of the pages is not explained by the node's own bases: a remote
# window saves a few hundred bytes now and costs a network read at every restore.
UNMATCHED_RATIO_MIN = 0.10
HASH_BYTES = 8
OWN_BASES_ONLY = "the transport is local: own bases only"


class Candidates:
    """Locations of one image's fingerprints, and the bases they are in."""

    def __init__(
        self, agent: Agent, domain: str, prints: native.Fingerprints, pages_taken_over: int = 0
    ) -> None:
        """`pages_taken_over` of the image have no samples because the last dedup's form of them is used again."""
        self._agent = agent
        self._domain = domain
        self.prints = prints
        self._pages_taken_over = pages_taken_over
        self._gathered: native.Locations | None = None  # the own index's answer, for the first use
        self._remote: list[tuple[int, Lookup]] = []  # by the first page they are about
        self.note = ""

    async def gather(self) -> None:
        """Asks the controller if the local index leaves much open. Never raises: a lookup is only a hint."""
        local = self._gathered = await self._local()
        if self._agent.settings.transport == "local":
            self.note = OWN_BASES_ONLY
            return
        pages = self.prints.page_count
        unmatched = await self._agent.in_ops(local.unmatched_pages) - self._pages_taken_over
        if pages == 0 or unmatched <= pages * UNMATCHED_RATIO_MIN:
            return
        try:
            self._remote = await self._ask(await self._agent.in_ops(local.remaining, self.prints.hashes))
        except MedesError as error:
            self._remote = []
            self.note = f"registry not asked, own bases only: {error}"

    async def _ask(self, hashes: bytes) -> list[tuple[int, Lookup]]:
        """The registry's answers, for so many pages at a time as it takes. Pages that the node's own bases explain
        have no hashes any more: asking for them is free."""
        k = self.prints.samples_per_page
        answers = []
        for first in range(0, self.prints.page_count, LOOKUP_PAGES_MAX):
            part = hashes[first * k * HASH_BYTES : (first + LOOKUP_PAGES_MAX) * k * HASH_BYTES]
            answers.append((first, await self._agent.controller.lookup(self._domain, part, k)))
        return answers

    async def _local(self) -> native.Locations:
        index = self._agent.bases.index(self._domain)
        return await self._agent.in_ops(index.lookup, self.prints.hashes, self.prints.samples_per_page)

    async def locations(self, *, remote: bool) -> native.Locations:
        """Without remote: this node's bases only. Looked up anew from the second time on: a base may have been
        published meanwhile."""
        found = self._gathered or await self._local()
        self._gathered = None
        if remote and self._remote:
            try:
                for first_page, answer in self._remote:
                    base_ids = [b.base_id for b in answer.bases]
                    await self._agent.in_ops(found.merge, answer.locations, base_ids, first_page)
            except MedesError as error:
                self.note = f"the registry's answer is unusable, own bases only: {error}"
                self._remote = []
                return await self._local()
        return found

    @property
    def descriptors(self) -> dict[int, BaseDescriptor]:
        """Remote bases of this domain by id; what another domain holds must not be used, whoever answered it."""
        own = self._agent.node_id
        bases = (b for _, answer in self._remote for b in answer.bases)
        return {b.base_id: b for b in bases if b.node_id != own and b.domain == self._domain}

    @property
    def endpoints(self) -> dict[str, NodeEndpoints]:
        return {h.node_id: h for _, answer in self._remote for h in answer.holders}

    @property
    def known_bases(self) -> int:
        return len(self._agent.bases.index(self._domain).base_ids()) + len(self.descriptors)
