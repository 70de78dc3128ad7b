"""Base pages of other nodes that this node keeps between restores, because working sets and tick sets are made of them.

Filled by restores and single touches from what they read, used by those that follow, within `limit_bytes`. Nothing rests
on it: what is not kept is read from its holder, and so is what turns out to be wrong. A base that nobody here has pinned
for `keep_period_s` goes, as it does at its holder; so does one that its holder refuses, and all when memory is short.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Set

from medes import native


class KeptPages:
    """Use from one event loop; the sums may be read from any thread."""

    def __init__(self, limit_bytes: int, keep_period_s: float) -> None:
        self._pages = native.KeptPages(limit_bytes) if limit_bytes else None
        self._keep_period_s = keep_period_s
        self._unpinned_since_s: dict[int, float] = {}

    @property
    def used_bytes(self) -> int:
        return self._pages.bytes if self._pages is not None else 0

    @property
    def base_ids(self) -> list[int]:
        return self._pages.base_ids if self._pages is not None else []

    @property
    def used_pages(self) -> int:
        """Pages of sandboxes that were made of what is kept, since the agent began."""
        return self._pages.used_pages if self._pages is not None else 0

    def base_set(self, domain: str) -> native.BaseSet:
        """For a sandbox of this domain: its restores find what others of the domain have read."""
        bases = native.BaseSet()
        if self._pages is not None:
            bases.keep_in(self._pages, domain)
        return bases

    def forget(self, base_ids: Iterable[int]) -> None:
        """Their holder refuses them, or they are not wanted."""
        for base_id in base_ids:
            self._unpinned_since_s.pop(base_id, None)
            if self._pages is not None:
                self._pages.drop(base_id)

    def clear(self) -> None:
        """Memory is short."""
        self._unpinned_since_s.clear()
        if self._pages is not None:
            self._pages.clear()

    def look(self, pinned: Callable[[], Set[int]], now_s: float) -> None:
        """Forgets bases that are not among the `pinned` ones, and were not for so long. They are asked for where any base is
        kept: it takes a walk over all sandboxes."""
        base_ids = self.base_ids
        unpinned = set(base_ids) - pinned() if base_ids else set()
        since_s = {base_id: self._unpinned_since_s.get(base_id, now_s) for base_id in unpinned}
        self._unpinned_since_s = since_s
        self.forget([base_id for base_id, then_s in since_s.items() if now_s - then_s >= self._keep_period_s])
