"""What a handle answers whose sandbox touches nothing while its pages are out (medes.drivers.driver.Handle)."""

from __future__ import annotations

from medes import native


class Untouched:
    placed_pages = 0
    reclaimable_pages = 0

    def working_set(self) -> bytes:
        return b""

    def touched(self) -> bytes:
        return b""

    def reclaimed(self) -> bytes:
        return b""

    def reclaim(
        self, pages_min: int = 1, pages_max: int = 0, cancel: native.CancelFlag | None = None
    ) -> tuple[dict[str, int], list[str]]:
        return {}, []
