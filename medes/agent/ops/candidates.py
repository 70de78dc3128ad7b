"""Where base pages for an image may lie: the node's own bases, then those of other nodes whose fingerprints it keeps
(medes.agent.bases.remote_index), then whatever the controller knows. Each is asked for what the ones before it left.
Which of them a page gets is voted on in native/codec/window_plan.cc."""

from __future__ import annotations

import logging

from medes import native
from medes.agent.agent import Agent
from medes.agent.controller_client import Lookup
from medes.errors import MedesError
from medes.limits import LOOKUP_PAGES_MAX
from medes.types import BaseDescriptor, NodeEndpoints

log = logging.getLogger(__name__)

# Bases of other nodes are looked at when more than this share of the pages is not explained by the node's own, since a
# remote window saves a few hundred bytes now and costs a network read at every restore; and the controller is asked
# when as much is left after those that are known here.
UNMATCHED_RATIO_MIN = 0.10
HASH_BYTES = PAGE_NUMBER_BYTES = 8
OWN_BASES_ONLY = "the transport is local: own bases only"


class Candidates:
    """Locations of one image's fingerprints, and the bases they are in."""

    def __init__(
        self, agent: Agent, domain: str, prints: native.Fingerprints, locations: native.Locations
    ) -> None:
        """`locations`: of the prints, in the node's own index. Pages without samples (zeros, or taken over from the last
        dedup) want none."""
        self._agent = agent
        self._domain = domain
        self.prints = prints
        self._found: native.Locations | None = (
            locations  # what the indexes of this node say, for the first use
        )
        # Answers about bases of other nodes, and the pages they are about.
        self._kept: tuple[bytes, Lookup] | None = None
        self._asked: list[tuple[bytes, Lookup]] = []
        self._use_kept = True
        self.note = ""

    async def gather(self) -> None:
        """Looks further while much is left open. Never raises: a lookup is only a hint."""
        found = self._found or await self._local()
        self._found = found
        self._kept, self._asked = None, []
        if self._agent.settings.transport == "local":
            self.note = OWN_BASES_ONLY
            return
        by = "own"
        open_pages, hashes = await self._open(found)
        if open_pages and self._use_kept:
            by = "remote"
            await self._look_in_kept(found, open_pages, hashes)
            if self._kept is not None:
                open_pages, hashes = await self._open(found)
        if open_pages:
            by = "controller"
            await self._look_at_controller(open_pages, hashes)
        self._agent.observer.lookup(by)

    async def gather_again(self) -> None:
        """A base has been published meanwhile, here or elsewhere."""
        self._found = None
        await self.gather()

    async def ask_anew(self) -> None:
        """Gathers again without what this node keeps of other nodes' bases. What was found there is forgotten: it may be
        old, and is learnt again if it is not."""
        self._use_kept = False
        if self._kept is not None:
            self._agent.refused([b.base_id for b in self._kept[1].bases])
            await self.gather_again()

    @property
    def kept(self) -> bool:
        """Whether bases were found in what this node keeps of other nodes'."""
        return self._kept is not None

    async def _open(self, found: native.Locations) -> tuple[bytes, bytes]:
        """The pages that want more locations (packed u64) and their hashes; none if they are too few to look further."""
        pages, hashes = await self._agent.in_ops(found.remaining, self.prints.hashes)
        few = len(pages) // PAGE_NUMBER_BYTES <= self.prints.page_count * UNMATCHED_RATIO_MIN
        return (b"", b"") if few else (pages, hashes)

    async def _look_in_kept(self, found: native.Locations, pages: bytes, hashes: bytes) -> None:
        """Adds to `found`."""
        kept = await self._agent.remote_index.lookup(self._domain, hashes, self.prints.samples_per_page)
        if kept is not None:
            await self._agent.in_ops(found.merge, kept.locations, [b.base_id for b in kept.bases], pages)
            self._kept = pages, kept

    async def _look_at_controller(self, pages: bytes, hashes: bytes) -> None:
        """The registry's answers, for so many pages at a time as it takes."""
        k = self.prints.samples_per_page
        row = k * HASH_BYTES
        try:
            for first in range(0, len(pages) // PAGE_NUMBER_BYTES, LOOKUP_PAGES_MAX):
                last = first + LOOKUP_PAGES_MAX
                answer = await self._agent.controller.lookup(
                    self._domain, hashes[first * row : last * row], k
                )
                self._asked.append((pages[first * PAGE_NUMBER_BYTES : last * PAGE_NUMBER_BYTES], answer))
        except MedesError as error:
            self._asked = []
            self.note = f"registry not asked, bases known here only: {error}"

    async def _local(self) -> native.Locations:
        index = self._agent.bases.index(self._domain)
        return await self._agent.in_ops(index.lookup, self.prints.hashes, self.prints.samples_per_page)

    async def locations(self, *, remote: bool) -> native.Locations:
        """Without remote: this node's bases only. Looked up anew from the second time on: a base may have been
        published meanwhile."""
        found = self._found if remote and self._found else await self._local()
        self._found = None
        if remote and self._answers:
            try:
                for pages, answer in self._answers:
                    base_ids = [b.base_id for b in answer.bases]
                    await self._agent.in_ops(found.merge, answer.locations, base_ids, pages)
            except MedesError as error:
                self.note = f"the registry's answer is unusable, own bases only: {error}"
                self._kept, self._asked = None, []
                return await self._local()
        return found

    @property
    def _answers(self) -> list[tuple[bytes, Lookup]]:
        return [*([self._kept] if self._kept is not None else []), *self._asked]

    @property
    def descriptors(self) -> dict[int, BaseDescriptor]:
        """Remote bases of this domain by id; what another domain holds must not be used, whoever answered it."""
        own = self._agent.node_id
        bases = (b for _, answer in self._answers for b in answer.bases)
        return {b.base_id: b for b in bases if own not in b.holders and b.domain == self._domain}

    @property
    def endpoints(self) -> dict[str, NodeEndpoints]:
        return {h.node_id: h for _, answer in self._asked for h in answer.holders}
