"""Where base pages for an image may lie: the node's own bases, then those of other nodes whose fingerprints it keeps
(medes.agent.remote_index), then whatever the controller knows. Each is asked for what the ones before it left."""

from __future__ import annotations

import logging

from medes import native
from medes.agent.controller_client import Lookup
from medes.agent.core import Agent
from medes.errors import MedesError
from medes.limits import LOOKUP_PAGES_MAX
from medes.types import BaseDescriptor, NodeEndpoints

log = logging.getLogger(__name__)

# Bases of other nodes are looked at when more than this share of the pages is not explained by the node's own, since a
# remote window saves a few hundred bytes now and costs a network read at every restore; and the controller is asked
# when as much is left after those that are known here.
UNMATCHED_RATIO_MIN = 0.10
HASH_BYTES = 8


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
        self._gathered: native.Locations | None = None  # what the indexes of this node say, for the first use
        # Answers about bases of other nodes, by the first page they are about.
        self._kept: Lookup | None = None
        self._asked: list[tuple[int, Lookup]] = []
        self._use_kept = True
        self.note = ""

    async def gather(self) -> None:
        """Looks further while much is left open. Never raises: a lookup is only a hint."""
        self._kept, self._asked = None, []
        found = self._gathered = await self._local()
        by = "own"
        if await self._leaves_much(found):
            by = "remote"
            if self._use_kept:
                await self._look_in_kept(found)
            if self._kept is None or await self._leaves_much(found):
                by = "controller"
                await self._look_at_controller(found)
        self._agent.observer.lookup(by)

    async def ask_anew(self) -> None:
        """Gathers again without what this node keeps of other nodes' bases. What was found there is forgotten: it may be
        old, and is learnt again if it is not."""
        self._use_kept = False
        if self._kept is not None:
            self._agent.remote_index.forget([b.base_id for b in self._kept.bases])
            await self.gather()

    @property
    def kept(self) -> bool:
        """Whether bases were found in what this node keeps of other nodes'."""
        return self._kept is not None

    async def _leaves_much(self, found: native.Locations) -> bool:
        unmatched = await self._agent.in_ops(found.unmatched_pages) - self._pages_taken_over
        return unmatched > self.prints.page_count * UNMATCHED_RATIO_MIN

    async def _look_in_kept(self, found: native.Locations) -> None:
        """Adds to `found`."""
        hashes = await self._agent.in_ops(found.remaining, self.prints.hashes)
        kept = await self._agent.remote_index.lookup(self._domain, hashes, self.prints.samples_per_page)
        if kept is not None:
            await self._agent.in_ops(found.merge, kept.locations, [b.base_id for b in kept.bases])
            self._kept = kept

    async def _look_at_controller(self, found: native.Locations) -> None:
        try:
            self._asked = await self._ask(await self._agent.in_ops(found.remaining, self.prints.hashes))
        except MedesError as error:
            self.note = f"registry not asked, bases known here only: {error}"

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
        found = self._gathered if remote and self._gathered else await self._local()
        self._gathered = None
        if remote and self._answers:
            try:
                for first_page, answer in self._answers:
                    base_ids = [b.base_id for b in answer.bases]
                    await self._agent.in_ops(found.merge, answer.locations, base_ids, first_page)
            except MedesError as error:
                self.note = f"the registry's answer is unusable, own bases only: {error}"
                self._kept, self._asked = None, []
                return await self._local()
        return found

    @property
    def _answers(self) -> list[tuple[int, Lookup]]:
        return [*([(0, self._kept)] if self._kept is not None else []), *self._asked]

    @property
    def descriptors(self) -> dict[int, BaseDescriptor]:
        """Remote bases of this domain by id; what another domain holds must not be used, whoever answered it."""
        own = self._agent.node_id
        bases = (b for _, answer in self._answers for b in answer.bases)
        return {b.base_id: b for b in bases if b.node_id != own and b.domain == self._domain}

    @property
    def endpoints(self) -> dict[str, NodeEndpoints]:
        return {h.node_id: h for _, answer in self._asked for h in answer.holders}

    @property
    def known_bases(self) -> int:
        return len(self._agent.bases.index(self._domain).base_ids()) + len(self.descriptors)
