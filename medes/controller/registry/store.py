"""The fingerprint registry's store: chunk hash → base pages, per dedup domain.

A store is a hint: losing it costs savings, never a sandbox. Its calls may block and are made from worker
threads; every store is thread-safe. One conformance suite (tests/conformance/test_registry_stores.py) runs over all.
"""

from __future__ import annotations

import abc
import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Protocol

from medes import native
from medes.errors import AlreadyExistsError, InternalError, LimitExceededError, PermissionDeniedError
from medes.limits import BASES_PER_NODE_MAX
from medes.types import BaseDescriptor

# Locations name a base by a 16-bit slot; the last value is part of "no location".
SLOTS_MAX = (1 << 16) - 1
NO_LOCATION = b"\xff" * 8
LOCATIONS_PER_HASH = 2
LOOKUP_RETRIES_MAX = 3


@dataclass(frozen=True, slots=True)
class Found:
    """An answer: `locations` packed as in controller.proto, slot → base."""

    locations: bytes
    bases: tuple[BaseDescriptor, ...]


@dataclass(frozen=True, slots=True)
class StoreStats:
    """Sizes of a store; bytes are those of the index, as far as it knows them."""

    bases: int = 0
    base_pages: int = 0
    hashes: int = 0
    bytes: int = 0


def nothing_found(sample_count: int) -> Found:
    """The answer that matches no sample."""
    return Found(NO_LOCATION * (sample_count * LOCATIONS_PER_HASH), ())


class RegistryStore(abc.ABC):
    """The contract of a registry store. Arguments are already checked by the handlers.

    Any thread, several at once; every method may block for as long as the store's own deadline. Where there is a server
    behind it, every method may raise store_unreachable (it passes), and may have been done: what changes something may be
    repeated, and then changes nothing. No other failure passes. What others have written into the store is not believed:
    a record that cannot be is logged and left out."""

    @abc.abstractmethod
    def publish(self, base: BaseDescriptor, hashes: bytes, positions: bytes, samples_per_page: int) -> None:
        """Adds a base. The same base from its holders, or some of them, again changes nothing.

        Raises already_exists when another node holds that id or the contents differ, limit_exceeded when a
        holder has too many.
        """

    @abc.abstractmethod
    def retire(self, base_id: int, node_id: str) -> bool:
        """The node leaves a base's holders; the base goes with its last one. False when it is not there. Raises
        permission_denied for a base that the node does not hold."""

    @abc.abstractmethod
    def retire_node(self, node_id: str) -> int:
        """As retire, for all bases that a node holds; returns how many."""

    @abc.abstractmethod
    def lookup(self, domain: str, hashes: bytes, samples_per_page: int) -> Found:
        """Up to two locations for every sample, only in bases of this domain that are published now."""

    @abc.abstractmethod
    def bases(self) -> list[BaseDescriptor]:
        """All published bases."""

    @abc.abstractmethod
    def base_count(self, function: str, domain: str) -> int:
        """How many bases a function has in a domain."""

    @abc.abstractmethod
    def stats(self) -> StoreStats:
        """Sizes."""

    def renew(self, node_ids: Iterable[str], lease_s: float) -> set[str]:
        """Says that these nodes live for lease_s more seconds; returns those that had no lease before. One that another
        controller has taken is left to it. Only stores that outlive a controller need it."""
        return set()

    def take(self, node_id: str, lease_s: float) -> None:
        """A node has joined this controller: from now on its lease is this one's, whoever had it before."""
        self.renew([node_id], lease_s)

    def retire_silent(self, node_id: str) -> int:
        """As retire_node, for one that is heard here no more; nothing where another controller has taken it."""
        return self.retire_node(node_id)

    def orphans(self) -> set[str]:
        """Nodes with bases here whose lease has run out, as seen by all controllers that share the store."""
        return set()

    @abc.abstractmethod
    def close(self) -> None:
        """Lets go of connections and memory. Idempotent."""


def republished(base: BaseDescriptor, known: BaseDescriptor) -> bool:
    """Whether what is published is a base that is known, of holders that are known."""
    return replace(base, holders=known.holders) == known and set(base.holders) <= set(known.holders)


def published_otherwise(known: BaseDescriptor) -> AlreadyExistsError:
    holders = ", ".join(known.holders)
    return AlreadyExistsError(
        f"published by {holders} with other contents", object=f"base {known.base_id:#x}"
    )


def held_by_others(base: BaseDescriptor) -> PermissionDeniedError:
    return PermissionDeniedError(f"held by {', '.join(base.holders)}", object=f"base {base.base_id:#x}")


class StoreClass(Protocol):
    """What a store's entry in medes.plugins names: a class whose instances are RegistryStores."""

    def open(self, url: str) -> RegistryStore:
        """The store that the setting `controller.store` names; its scheme is the entry's name. Raises invalid_argument,
        unsupported (a package is missing), store_unreachable."""
        ...


class MemoryStore(RegistryStore):
    """One native index per domain, all in this process. Lookups release the GIL and run side by side."""

    @classmethod
    def open(cls, url: str) -> MemoryStore:
        return cls()

    def __init__(self) -> None:
        self._writer = threading.Lock()  # one publish or retire at a time; taken before _lock
        self._lock = (
            threading.Lock()
        )  # the maps; held for moments only, so that lookups never wait for an insert
        self._bases: dict[int, BaseDescriptor] = {}
        self._marks: dict[int, int] = {}  # base id → checksum of what was published
        self._indexes: dict[str, native.FingerprintIndex] = {}
        self._per_node: dict[str, set[int]] = {}
        self._per_domain: Counter[str] = Counter()
        self._per_function: Counter[tuple[str, str]] = Counter()

    def publish(self, base: BaseDescriptor, hashes: bytes, positions: bytes, samples_per_page: int) -> None:
        mark = native.checksum64(hashes) ^ native.checksum64(positions)
        with self._writer:
            with self._lock:
                known = self._bases.get(base.base_id)
                if known is not None:
                    if republished(base, known) and self._marks[base.base_id] == mark:
                        return
                    raise published_otherwise(known)
                for node_id in base.holders:
                    if len(self._per_node.get(node_id, ())) >= BASES_PER_NODE_MAX:
                        raise LimitExceededError(
                            f"a node has at most {BASES_PER_NODE_MAX} bases", object=node_id
                        )
                # The maps know the base before the index does: a lookup never finds an unknown one.
                index = self._indexes.setdefault(base.domain, native.FingerprintIndex())
                self._add(base, mark)
            try:
                index.insert(base.base_id, hashes, positions, samples_per_page)
            except BaseException:
                index.retire(base.base_id)
                with self._lock:
                    self._forget(base)
                raise

    def retire(self, base_id: int, node_id: str) -> bool:
        with self._writer:
            with self._lock:
                base = self._bases.get(base_id)
            if base is None:
                return False
            if node_id not in base.holders:
                raise held_by_others(base)
            self._leave(base, node_id)
            return True

    def retire_node(self, node_id: str) -> int:
        with self._writer:
            with self._lock:
                gone = [self._bases[b] for b in self._per_node.get(node_id, ())]
            for base in gone:
                self._leave(base, node_id)
            return len(gone)

    def _leave(self, base: BaseDescriptor, node_id: str) -> None:
        left = base.without(node_id)
        if left is None:
            self._remove(base)
            return
        with self._lock:
            self._bases[base.base_id] = left
            self._forget_holder(base.base_id, node_id)

    def _remove(self, base: BaseDescriptor) -> None:
        if not self._indexes[base.domain].retire(base.base_id):
            raise InternalError(
                "a published base is missing from its index", object=f"base {base.base_id:#x}"
            )
        with self._lock:
            self._forget(base)

    def _add(self, base: BaseDescriptor, mark: int) -> None:
        self._bases[base.base_id] = base
        self._marks[base.base_id] = mark
        for node_id in base.holders:
            self._per_node.setdefault(node_id, set()).add(base.base_id)
        self._per_domain[base.domain] += 1
        self._per_function[(base.function, base.domain)] += 1

    def _forget(self, base: BaseDescriptor) -> None:
        """Nodes, functions and domains come from callers: those without bases must not stay behind."""
        del self._bases[base.base_id], self._marks[base.base_id]
        for node_id in base.holders:
            self._forget_holder(base.base_id, node_id)
        self._per_function[(base.function, base.domain)] -= 1
        if not self._per_function[(base.function, base.domain)]:
            del self._per_function[(base.function, base.domain)]
        self._per_domain[base.domain] -= 1
        if not self._per_domain[base.domain]:
            del self._per_domain[base.domain], self._indexes[base.domain]

    def _forget_holder(self, base_id: int, node_id: str) -> None:
        self._per_node[node_id].discard(base_id)
        if not self._per_node[node_id]:
            del self._per_node[node_id]

    def lookup(self, domain: str, hashes: bytes, samples_per_page: int) -> Found:
        for _ in range(LOOKUP_RETRIES_MAX):
            with self._lock:
                index = self._indexes.get(domain)
            if index is None:
                break
            locations, base_ids = index.lookup(hashes, samples_per_page).pack()
            if len(base_ids) > SLOTS_MAX:
                raise LimitExceededError(f"more than {SLOTS_MAX} bases match", object=domain)
            with self._lock:
                bases = [self._bases.get(b) for b in base_ids]
            if all(bases):
                return Found(locations, tuple(b for b in bases if b))
            # A base was retired while we looked: its slots must not reach the caller, so look again.
        return nothing_found(len(hashes) // 8)

    def bases(self) -> list[BaseDescriptor]:
        with self._lock:
            return list(self._bases.values())

    def base_count(self, function: str, domain: str) -> int:
        with self._lock:
            return self._per_function[(function, domain)]

    def stats(self) -> StoreStats:
        with self._lock:
            indexes = list(self._indexes.values())
            total = StoreStats(
                bases=len(self._bases), base_pages=sum(b.page_count for b in self._bases.values())
            )
        for index in indexes:
            sizes = index.stats()
            total = replace(total, hashes=total.hashes + sizes["hashes"], bytes=total.bytes + sizes["bytes"])
        return total

    def close(self) -> None:
        with self._writer, self._lock:
            for table in (self._bases, self._marks, self._indexes, self._per_node):
                table.clear()
            self._per_domain.clear()
            self._per_function.clear()
