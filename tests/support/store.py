"""A registry store in plain Python: the model that tests of handlers use."""

from __future__ import annotations

import struct

from medes.controller.registry.store import Found, RegistryStore, StoreStats
from medes.types import BaseDescriptor


class ModelStore(RegistryStore):
    """First base in order of publishing answers for a hash; slow and obvious."""

    def __init__(self) -> None:
        self.published: dict[int, tuple[BaseDescriptor, bytes, bytes, int]] = {}
        self.closed = False

    def publish(self, base: BaseDescriptor, hashes: bytes, positions: bytes, samples_per_page: int) -> None:
        self.published[base.base_id] = (base, hashes, positions, samples_per_page)

    def retire(self, base_id: int, node_id: str) -> bool:
        if base_id not in self.published:
            return False
        base, hashes, positions, k = self.published.pop(base_id)
        left = base.without(node_id)
        if left is not None:
            self.published[base_id] = (left, hashes, positions, k)
        return True

    def retire_node(self, node_id: str) -> int:
        gone = [i for i, row in self.published.items() if node_id in row[0].holders]
        for base_id in gone:
            self.retire(base_id, node_id)
        return len(gone)

    def lookup(self, domain: str, hashes: bytes, samples_per_page: int) -> Found:
        where: dict[int, int] = {}
        bases: list[BaseDescriptor] = []
        for base, known, positions, k in self.published.values():
            if base.domain != domain:
                continue
            for i, h in enumerate(struct.unpack(f"<{len(known) // 8}Q", known)):
                where.setdefault(h, len(bases) << 48 | (i // k) << 16 | positions[i] << 8)
            bases.append(base)
        none = 2**64 - 1
        values = [
            v
            for h in struct.unpack(f"<{len(hashes) // 8}Q", hashes)
            for v in (where.get(h, none) if h else none, none)
        ]
        return Found(struct.pack(f"<{len(values)}Q", *values), tuple(bases))

    def bases(self) -> list[BaseDescriptor]:
        return [row[0] for row in self.published.values()]

    def base_count(self, function: str, domain: str) -> int:
        return sum((b.function, b.domain) == (function, domain) for b in self.bases())

    def stats(self) -> StoreStats:
        return StoreStats(len(self.published), sum(b.page_count for b in self.bases()))

    def close(self) -> None:
        self.closed = True
