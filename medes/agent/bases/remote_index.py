"""Fingerprints of other nodes' bases that this node's functions use: such a page is then found without the controller.

A base is learnt of its holder when a dedup op has committed with a pin on it, behind the op. What is kept is a hint,
as the registry is: a base that has gone meanwhile is refused when it is pinned. It is forgotten when its holder
refuses it or does not answer, when the number of samples a page changes, and when `limit_bytes` is reached, the least
recently used base first. Nothing survives a restart: the next op asks the controller and learns again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from medes import native
from medes.agent.controller_client import Lookup
from medes.errors import MedesError
from medes.limits import REMOTE_BASES_MAX
from medes.types import BaseDescriptor

log = logging.getLogger(__name__)

# What a base takes in an index at most: 12 bytes an entry, which a table that has just grown fills to 72 %.
_SAMPLE_BYTES = 17
_INDEX_BYTES = 32 << 10


class Fetch(Protocol):
    """Asks the holder for (hashes, positions) of all pages of its base. Raises catalogue errors."""

    def __call__(self, base: BaseDescriptor, samples_per_page: int) -> Awaitable[tuple[bytes, bytes]]: ...


@dataclass(slots=True)
class _Domain:
    """An index of its own per dedup domain: a look-up cannot name another one's base."""

    index: native.FingerprintIndex
    bytes: int = 0


class RemoteIndex:
    """Use from one event loop; indexes are changed and read in the threads of `run`, one change at a time."""

    def __init__(
        self,
        fetch: Fetch,
        run: Callable[..., Awaitable[Any]],
        spawn: Callable[[Coroutine[Any, Any, None], str], object],
        samples_per_page: Callable[[], int],
        limit_bytes: int,
    ) -> None:
        """`run(function, *arguments)` calls it in a thread; `spawn(coroutine, name)` starts a task."""
        self._fetch = fetch
        self._run = run
        self._spawn = spawn
        self._samples_per_page = samples_per_page
        self.limit_bytes = limit_bytes
        self._domains: dict[str, _Domain] = {}
        self._kept: dict[int, BaseDescriptor] = {}  # the least recently used first
        self._learning: dict[int, BaseDescriptor] = {}
        self._fetching = asyncio.Lock()  # one base in memory beside the indexes
        self._change = asyncio.Lock()

    @property
    def used_bytes(self) -> int:
        return sum(d.bytes for d in list(self._domains.values()))

    @property
    def base_ids(self) -> list[int]:
        """The least recently used first."""
        return list(self._kept)

    # --- looking up ----------------------------------------------------------------------------------------
    async def lookup(self, domain: str, hashes: bytes, samples_per_page: int) -> Lookup | None:
        """What the controller would answer for these hashes, of the kept bases alone; None when there is nothing."""
        found = self._domains.get(domain)
        if found is None:
            return None
        packed, base_ids = await self._run(_lookup, found.index, hashes, samples_per_page)
        bases = [self._kept[b] for b in base_ids if b in self._kept]
        if not bases or len(bases) < len(base_ids):  # one is on its way in or out
            return None
        return Lookup(packed, tuple(bases), ())

    # --- learning ------------------------------------------------------------------------------------------
    def used(self, domain: str, bases: Iterable[BaseDescriptor]) -> None:
        """A dedup op of this domain committed with pins on these bases of other nodes: those that are not kept are
        learnt, in the background. Never raises, does not block."""
        for base in bases:
            if base.domain != domain:  # a holder that errs about its base
                continue
            known = self._kept.pop(base.base_id, None)
            if known is not None:
                self._kept[base.base_id] = known
            elif base.base_id not in self._learning and self._fits(base):
                self._learning[base.base_id] = base
                self._spawn(
                    self._learn(base), f"fingerprints of base {base.base_id:016x} at {base.holders[0]}"
                )

    def _fits(self, base: BaseDescriptor) -> bool:
        return _INDEX_BYTES + base.page_count * self._samples_per_page() * _SAMPLE_BYTES <= self.limit_bytes

    async def _learn(self, base: BaseDescriptor) -> None:
        """Raises what the holder does."""
        try:
            async with self._fetching:
                k = self._samples_per_page()
                hashes, positions = await self._fetch(base, k)
                async with self._change:
                    await self._insert(base, hashes, positions, k)
        finally:
            if self._learning.get(base.base_id) is base:
                del self._learning[base.base_id]

    async def _insert(self, base: BaseDescriptor, hashes: bytes, positions: bytes, k: int) -> None:
        domain = self._domains.setdefault(base.domain, _Domain(native.FingerprintIndex()))
        try:
            domain.bytes = await self._run(_insert, domain.index, base.base_id, hashes, positions, k)
        except MedesError:
            self._drop_if_empty(base.domain, domain)
            raise
        if self._learning.get(base.base_id) is not base:  # forgotten meanwhile
            await self._retire(base)
            return
        self._kept[base.base_id] = base
        log.info("base %016x of %s: %d pages are found here", base.base_id, base.holders[0], base.page_count)
        while self._kept and (self.used_bytes > self.limit_bytes or len(self._kept) > REMOTE_BASES_MAX):
            oldest = self._kept.pop(next(iter(self._kept)))
            await self._retire(oldest)

    # --- forgetting ----------------------------------------------------------------------------------------
    def forget(self, base_ids: Iterable[int]) -> None:
        """No look-up finds these bases from now on; their memory comes back in the background."""
        for base_id in base_ids:
            self._learning.pop(base_id, None)
            base = self._kept.pop(base_id, None)
            if base is not None:
                self._spawn(self._forget(base), f"forget base {base_id:016x}")

    def forget_node(self, node_id: str) -> None:
        """The node does not answer: all bases that it alone holds, and those that are being learnt. It leaves the holders
        of the others."""
        gone = [b.base_id for b in self._learning.values() if node_id in b.holders]
        for base in [b for b in self._kept.values() if node_id in b.holders]:
            left = base.without(node_id)
            if left is None:
                gone.append(base.base_id)
            else:
                self._kept[base.base_id] = left
        self.forget(gone)

    def clear(self) -> None:
        """Everything: the number of samples a page has changed."""
        self._domains = {}
        self._kept = {}
        self._learning = {}

    async def _forget(self, base: BaseDescriptor) -> None:
        async with self._change:
            await self._retire(base)

    async def _retire(self, base: BaseDescriptor) -> None:
        domain = self._domains.get(base.domain)
        if domain is None:
            return
        domain.bytes = await self._run(_retire, domain.index, base.base_id)
        self._drop_if_empty(base.domain, domain)

    def _drop_if_empty(self, name: str, domain: _Domain) -> None:
        if self._domains.get(name) is domain and all(b.domain != name for b in self._kept.values()):
            del self._domains[name]


def _lookup(index: native.FingerprintIndex, hashes: bytes, samples_per_page: int) -> tuple[bytes, list[int]]:
    return index.lookup(hashes, samples_per_page).pack()


def _insert(index: native.FingerprintIndex, base_id: int, hashes: bytes, positions: bytes, k: int) -> int:
    """The index's bytes afterwards."""
    index.insert(base_id, hashes, positions, k)
    return index.stats()["bytes"]


def _retire(index: native.FingerprintIndex, base_id: int) -> int:
    index.retire(base_id)
    return index.stats()["bytes"]
