"""What the ops tell about themselves; metrics implement it, tests and tools may leave it silent."""

from __future__ import annotations

from medes.types import DedupReport, RestoreReport


class Observer:
    """Hears of every op as it ends. This one does nothing."""

    def dedup(self, outcome: str, report: DedupReport | None = None) -> None:
        """`outcome`: done, or the code of the error."""

    def restore(self, outcome: str, report: RestoreReport | None = None) -> None:
        """`outcome`: done, demand, or the code of the error."""

    def remote_pages(self, transport: str, pages: int) -> None:
        """Base pages read from peers."""

    def lookup(self, by: str) -> None:
        """Where the pages of an image were looked up. `by`: own, remote or controller, each after those before it."""

    def reclaim(self, outcome: str, pages: int = 0) -> None:
        """A sleeper gave up so many pages that it had touched. `outcome`: done, or the code of the error."""

    def touched(self, pages: int) -> None:
        """Pages that a dedup'd sandbox touched and that it sleeps on with."""

    def lost(self) -> None:
        """A sandbox was lost."""

    def waits(self, code: str) -> None:
        """A sandbox could not be taken back now; `code` of what stands in the way. Every attempt counts."""

    def purged(self, reason: str) -> None:
        """`reason`: asked, timer or exited."""

    def activity_expired(self) -> None:
        """A sandbox counts as idle because its runtime said nothing for its whole lease."""
