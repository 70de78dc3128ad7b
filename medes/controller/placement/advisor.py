"""Base demarcation: who becomes a base, with reservations so that two sandboxes do not at the same moment."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from medes.errors import LimitExceededError
from medes.limits import BASE_RESERVATIONS_MAX
from medes.policy.demarcation import needs_base

# Values of Advice.reason.
FIRST_BASE = "first_base"  # the function has no base in this domain
OVER_THRESHOLD = "over_threshold"  # dedup'd sandboxes per base exceed T
ENOUGH_BASES = "enough_bases"
BEING_MADE = "being_made"  # another sandbox of the function was told to become the first base a moment ago


@dataclass(frozen=True, slots=True)
class _Reservation:
    node_id: str
    sandbox_id: str
    expires_s: float


class Advisor:
    """Counts a reservation as a base until it is published, given back or expired. Thread-safe."""

    def __init__(self, threshold: int, reservation_s: float) -> None:
        self._threshold = threshold
        self._reservation_s = reservation_s
        self._reserved: dict[tuple[str, str], list[_Reservation]] = {}
        self._lock = threading.Lock()

    def advise(
        self,
        function: str,
        domain: str,
        node_id: str,
        sandbox_id: str,
        *,
        base_count: int,
        dedup_count: int,
        now_s: float,
    ) -> tuple[bool, str]:
        """(make a base?, why). A sandbox that holds a reservation is told the same again, and keeps it longer."""
        key = (function, domain)
        with self._lock:
            others = [
                r
                for r in self._reserved.get(key, ())
                if r.expires_s > now_s and (r.node_id, r.sandbox_id) != (node_id, sandbox_id)
            ]
            make = needs_base(dedup_count, base_count + len(others), self._threshold)
            kept = list(others)
            if make:
                if sum(map(len, self._reserved.values())) >= BASE_RESERVATIONS_MAX:
                    raise LimitExceededError("too many bases are being made at once", object=function)
                kept.append(_Reservation(node_id, sandbox_id, now_s + self._reservation_s))
            if kept:
                self._reserved[key] = kept
            else:
                self._reserved.pop(key, None)
        if make:
            return True, FIRST_BASE if base_count + len(others) == 0 else OVER_THRESHOLD
        return False, BEING_MADE if base_count == 0 else ENOUGH_BASES

    def published(self, function: str, domain: str, node_id: str) -> None:
        """A base of this function has come from this node: its oldest reservation has done its work."""
        key = (function, domain)
        with self._lock:
            held = self._reserved.get(key, [])
            for i, r in enumerate(held):
                if r.node_id == node_id:
                    del held[i]
                    break
            if not held:
                self._reserved.pop(key, None)

    def forget_node(self, node_id: str) -> None:
        """The node is gone, so it will not publish."""
        self._keep(lambda r: r.node_id != node_id)

    def expire(self, now_s: float) -> None:
        """Drops reservations that nobody made use of."""
        self._keep(lambda r: r.expires_s > now_s)

    def _keep(self, wanted: Callable[[_Reservation], bool]) -> None:
        with self._lock:
            kept = {k: [r for r in held if wanted(r)] for k, held in self._reserved.items()}
            self._reserved = {k: held for k, held in kept.items() if held}
