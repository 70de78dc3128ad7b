"""All that a controller holds, behind one object that handlers are given."""

from __future__ import annotations

import threading

from medes.chance import Chance
from medes.config import ControllerSettings
from medes.controller.members.directory import Directory
from medes.controller.members.domain_access import DomainAccess
from medes.controller.members.latency import RecentLatencies
from medes.controller.members.membership import Membership
from medes.controller.placement.advisor import Advisor
from medes.controller.registry.store import RegistryStore
from medes.limits import NODES_MAX
from medes.types import NodeUsage, Statistics


class Refusals:
    """What was said of late: a node that is refused asks again every few seconds."""

    AGAIN_S = 60.0

    def __init__(self) -> None:
        self._said: dict[tuple[str, str], float] = {}

    def is_news(self, node_id: str, about: str, now_s: float) -> bool:
        """True when this has not been said within AGAIN_S."""
        self._said = {key: said_s for key, said_s in self._said.items() if now_s - said_s < self.AGAIN_S}
        news = (node_id, about) not in self._said and len(self._said) < NODES_MAX
        if news:
            self._said[node_id, about] = now_s
        return news


class ControllerState:
    """Owns nothing but soft state; the store is the caller's to close. Thread-safe."""

    def __init__(
        self, settings: ControllerSettings, store: RegistryStore, chance: Chance | None = None
    ) -> None:
        self.settings = settings
        self.store = store
        self.chance = chance or Chance()
        # A store that outlives the controller keeps its bases; the directory does not, so agents announce again
        # whenever this value changes, as it does when the store has lost what it held.
        self.incarnation = self.chance.hex(8)
        self.renewed: set[str] = set()  # nodes whose leases are in the store; under node_changes
        self.membership = Membership(settings.lease_ms / 1000)
        self.refusals = Refusals()  # under node_changes
        self.directory = Directory()
        self.domain_access = DomainAccess(self.directory)
        self.advisor = Advisor(settings.base_threshold, settings.base_reservation_s)
        self.latencies = RecentLatencies()
        # Held over a change of membership and what follows from it: a node that comes back at the moment it is
        # declared dead must not lose what it announces afterwards.
        self.node_changes = threading.Lock()
        self._lock = threading.Lock()
        self._lookups = 0
        self._lookup_pages = 0

    def count_lookup(self, pages: int, seconds: float) -> None:
        """One finished lookup."""
        self.latencies.add(seconds * 1e6)
        with self._lock:
            self._lookups += 1
            self._lookup_pages += pages

    def statistics(self) -> Statistics:
        """Counters as of now."""
        sizes = self.store.stats()
        with self._lock:
            lookups, pages = self._lookups, self._lookup_pages
        return Statistics(
            bases=sizes.bases,
            base_pages=sizes.base_pages,
            registry_hashes=sizes.hashes,
            registry_bytes=sizes.bytes,
            lookups=lookups,
            lookup_pages=pages,
            lookup_us_p50=self.latencies.quantile(0.50),
            lookup_us_p99=self.latencies.quantile(0.99),
            nodes_alive=self.membership.alive_count(),
        )

    def cluster_bytes(self, now_s: float) -> dict[str, int]:
        """Memory of the live nodes by kind."""
        usages: list[NodeUsage] = [r.usage for r in self.membership.records(now_s) if r.alive]
        return {
            "memory": sum(u.memory_bytes for u in usages),
            "warm": sum(u.warm_bytes for u in usages),
            "kept": sum(u.kept_bytes for u in usages),
            "base": sum(u.base_bytes for u in usages),
            "present": sum(u.present_bytes for u in usages),
            "tick": sum(u.tick_bytes for u in usages),
            "touched": sum(u.touched_bytes for u in usages),
            "gross_saved": sum(u.gross_saved_bytes for u in usages),
            "saved": sum(u.saved_bytes for u in usages),
        }
