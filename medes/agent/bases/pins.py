"""Pins on the bases of this node: who needs which base kept. A base is freed only when nobody is in this table.

A pin belongs to (node, holder): the node that asked and the dedup op it asked for. Pins of other nodes are
journalled before they are granted; those of this node follow from its sandbox files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

# Pins that a damaged journal may have lost: held for whom nobody knows, until `medes base rm --force`.
UNKNOWN_NODE, UNKNOWN_HOLDER = "(unknown)", "(a damaged journal)"

HolderKey = tuple[str, str]  # (node id, holder id)
_NOBODY: frozenset[HolderKey] = frozenset()


class PinTable:
    """In-memory table; pure bookkeeping, the caller journals. Use from one event loop."""

    def __init__(self) -> None:
        self._by_base: dict[int, set[HolderKey]] = {}
        self._by_holder: dict[HolderKey, tuple[str, set[int]]] = {}
        self._unknown: set[HolderKey] = set()  # those of UNKNOWN_NODE

    def pin(self, node_id: str, holder_id: str, domain: str, base_ids: Iterable[int]) -> None:
        """Adds pins; repeating one is harmless."""
        key = (node_id, holder_id)
        ids = self._by_holder.setdefault(key, (domain, set()))[1]
        for base_id in base_ids:
            ids.add(base_id)
            self._by_base.setdefault(base_id, set()).add(key)
        if not ids:
            del self._by_holder[key]
        elif node_id == UNKNOWN_NODE:
            self._unknown.add(key)

    def unpin(self, node_id: str, holder_id: str, base_ids: Iterable[int] | None = None) -> set[int]:
        """Takes pins back (all of the holder's without base_ids). Returns the bases nobody pins any more."""
        key = (node_id, holder_id)
        if key not in self._by_holder:
            return set()
        held = self._by_holder[key][1]
        freed = set()
        for base_id in held.intersection(base_ids) if base_ids is not None else set(held):
            held.discard(base_id)
            holders = self._by_base[base_id]
            holders.discard(key)
            if not holders:
                del self._by_base[base_id]
                freed.add(base_id)
        if not held:
            del self._by_holder[key]
            self._unknown.discard(key)
        return freed

    def replace_node(
        self, node_id: str, pins: Mapping[str, tuple[str, Iterable[int]]]
    ) -> tuple[set[int], set[str]]:
        """Makes `pins` (holder → domain, base ids) all that this node pins here.

        Returns the bases nobody pins any more and the holders whose pins were dropped entirely.
        """
        before = set(self.bases_of_node(node_id))
        gone = {holder for node, holder in self._by_holder if node == node_id} - set(pins)
        for holder_id in {holder for node, holder in self._by_holder if node == node_id}:
            self.unpin(node_id, holder_id)
        for holder_id, (domain, base_ids) in pins.items():
            self.pin(node_id, holder_id, domain, base_ids)
        return {b for b in before if not self.is_pinned(b)}, gone

    def is_pinned(self, base_id: int) -> bool:
        return base_id in self._by_base

    def count(self, base_id: int) -> int:
        """How many holders pin the base."""
        return len(self._by_base.get(base_id, ()))

    def users(self, base_id: int) -> int:
        """How many of them are known: those that the base's memory is shared out to."""
        holders = self._by_base.get(base_id, _NOBODY)
        return len(holders) - len(holders & self._unknown)

    def by_node(self, base_id: int) -> dict[str, int]:
        """Node → how many of its holders pin the base."""
        counts: dict[str, int] = {}
        for node_id, _ in self._by_base.get(base_id, ()):
            counts[node_id] = counts.get(node_id, 0) + 1
        return counts

    def held(self, node_id: str, holder_id: str) -> set[int]:
        """The bases this holder pins."""
        entry = self._by_holder.get((node_id, holder_id))
        return set(entry[1]) if entry else set()

    def holders_of_node(self, node_id: str) -> list[str]:
        """All holders of that node with pins here."""
        return sorted(holder for node, holder in self._by_holder if node == node_id)

    def nodes(self) -> list[str]:
        """All nodes with pins here."""
        return sorted({node for node, _ in self._by_holder})

    def bases_of_node(self, node_id: str) -> set[int]:
        """All bases that node pins here."""
        return {b for (node, _), (_, ids) in self._by_holder.items() if node == node_id for b in ids}

    def peer_domains(self, own_node: str) -> set[tuple[str, str]]:
        """(node, domain) of every other node with pins here."""
        return {(node, domain) for (node, _), (domain, _) in self._by_holder.items() if node != own_node}
