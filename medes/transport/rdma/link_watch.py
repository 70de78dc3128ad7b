"""Says in the log when reads leave RDMA for TCP and when connections break: counters alone are seen too late."""

from __future__ import annotations

import logging
from dataclasses import dataclass

log = logging.getLogger(__name__)

QUIET_S = 60.0  # at most one warning of each kind a link in so long


@dataclass(slots=True)
class _Told:
    """What was said of one counter of one link."""

    value: int = 0
    at_s: float = float("-inf")


class LinkWatch:
    """Compares the counters of (peer, domain) links with what it said last. Use from one thread."""

    def __init__(self) -> None:
        self._told: dict[tuple[str, str, str], _Told] = {}

    def look(self, node_id: str, domain: str, stats: dict[str, int], now_s: float) -> None:
        """`stats` of the link's reader: breaks, fallbacks."""
        broken = self._risen(node_id, domain, "breaks", stats, now_s)
        if broken:
            log.warning(
                "RDMA connection to %s (%s) broke (%d times since last said)", node_id, domain, broken
            )
        reads = self._risen(node_id, domain, "fallbacks", stats, now_s)
        if reads:
            log.warning(
                "%d reads from %s (%s) went over TCP because RDMA could not do them", reads, node_id, domain
            )

    def forget(self, node_id: str, domain: str) -> None:
        """The link has a new reader, whose counters begin at 0."""
        for key in [k for k in self._told if k[:2] == (node_id, domain)]:
            self._told[key].value = 0

    def _risen(self, node_id: str, domain: str, name: str, stats: dict[str, int], now_s: float) -> int:
        """By how much since it was last told; 0 while it is to be quiet."""
        told = self._told.setdefault((node_id, domain, name), _Told())
        risen = stats.get(name, 0) - told.value
        if risen <= 0 or now_s - told.at_s < QUIET_S:
            return 0
        told.value, told.at_s = stats[name], now_s
        return risen
