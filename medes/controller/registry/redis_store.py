"""The registry in Redis or Valkey (single or Cluster): it outlives the controller and may outgrow its memory.

All keys of a dedup domain share a hash tag, so that a Cluster spreads the registry by domain:

    medes:{tag}:h          hash    chunk hash (8 bytes) → one or two locations (8 bytes each, as on the wire)
    medes:{tag}:slots      hash    slot (2 bytes) → base id
    medes:{tag}:slot_of    hash    base id → slot
    medes:{tag}:next       number  where the search for a free slot starts
    medes:{tag}:f:<sha>    set     base ids of a function
    medes:bases            hash    base id → record (JSON): descriptor, mark, state
    medes:prints:<id>      string  the base's hashes, to find its locations again at its end
    medes:node:<id>        set     base ids of a node
    medes:lease:<id>       string  the controller that the node joined last; expires when it has not seen the node for its lease

A location's upper 16 bits are the base's slot, unique in its domain. States of a record: adding, ready, leaving;
each step may be repeated, so that a controller killed in the middle leaves work that the next call completes.

What Redis answers is believed no more than a caller: a record that is none is logged by its name and dropped, a base of
another domain is not told, a key of another type is an error that names it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import secrets
import struct
from array import array
from collections.abc import Iterable, Iterator
from typing import Any

from medes import native
from medes.controller.registry import redis_scripts as scripts
from medes.controller.registry import store as contract
from medes.controller.registry.redis_records import (
    BASES,
    KEY_BYTES,
    Record,
    base_key,
    domain_tag,
    function_key,
    slot_key,
)
from medes.controller.registry.store import LOCATIONS_PER_HASH, NO_LOCATION, Found, RegistryStore, StoreStats
from medes.errors import (
    CorruptError,
    InvalidArgumentError,
    IoError,
    LimitExceededError,
    StoreUnreachableError,
    UnsupportedError,
)
from medes.limits import HOLDERS_PER_BASE_MAX
from medes.types import BaseDescriptor

log = logging.getLogger(__name__)

# Hashes per script call: a few milliseconds of Redis each, so that other callers get their turn; Lua's unpack()
# takes just under 8,000 values.
CHUNK_HASHES = 4096
SOCKET_TIMEOUT_S = 10.0
NONE_SLOT = 0xFFFF
LEAVE_RETRIES_MAX = 2 * HOLDERS_PER_BASE_MAX
SCAN_COUNT = 1000


def _chunks(data: bytes) -> Iterator[bytes]:
    step = CHUNK_HASHES * 8
    return (data[i : i + step] for i in range(0, len(data), step))


class RedisStore(RegistryStore):
    """Blocking; thread-safe. Several controllers may share one Redis."""

    @classmethod
    def open(cls, url: str) -> RedisStore:
        return cls(url)

    def __init__(self, url: str) -> None:
        """Connects. Raises unsupported without the redis package, store_unreachable when nobody answers."""
        try:
            import redis
            import redis.cluster
        except ImportError as error:
            raise UnsupportedError(
                "the redis package is missing", object=url, hint="pip install medes[redis]"
            ) from error
        self._errors: Any = redis
        options: dict[str, Any] = {
            "socket_timeout": SOCKET_TIMEOUT_S,
            "socket_connect_timeout": SOCKET_TIMEOUT_S,
        }
        client: Any
        try:
            client = redis.Redis.from_url(url, **options)
        except ValueError as error:
            raise InvalidArgumentError(str(error), object="controller.store") from error
        with self._mapped():
            if client.info("cluster").get("cluster_enabled"):
                client.close()
                client = redis.cluster.RedisCluster.from_url(url, **options)
        self._redis: Any = client
        self._closed = False
        self._owner = secrets.token_bytes(8)  # of leases; no Chance: a store is opened by its address alone

    @contextlib.contextmanager
    def _mapped(self, what: str = "registry store") -> Iterator[None]:
        """Redis' exceptions as ours; `what`: the record they are about."""
        try:
            yield
        except (self._errors.ConnectionError, self._errors.TimeoutError) as error:
            raise StoreUnreachableError(
                f"Redis does not answer: {error}",
                object="registry store",
                hint="is it running at the URL of controller.store?",
            ) from error
        except self._errors.RedisError as error:
            raise IoError(f"Redis: {error}", object=what) from error

    # --- writing -------------------------------------------------------------------------------------------
    def publish(self, base: BaseDescriptor, hashes: bytes, positions: bytes, samples_per_page: int) -> None:
        mark = native.checksum64(hashes) ^ native.checksum64(positions)
        with self._mapped(f"base {base.base_id:#x}"):
            record = self._begin(base, mark)
            if record.state == "ready":
                return
            slot = self._take_slot(record)
            self._redis.set(f"medes:prints:{base.base_id:x}", hashes)
            values = array("Q", _locations(slot, positions, samples_per_page))
            locations = values.tobytes()
            for fields, values_chunk in zip(_chunks(hashes), _chunks(locations), strict=True):
                self._redis.eval(scripts.INSERT, 1, f"{domain_tag(base.domain)}:h", fields, values_chunk)
            self._redis.sadd(function_key(base.function, base.domain), base_key(base.base_id))
            self._save(dataclasses.replace(record, state="ready"))

    def _begin(self, base: BaseDescriptor, mark: int) -> Record:
        """The record to go on with: a new one, or that of an earlier attempt."""
        known = self._load(base.base_id)
        if known is not None and known.state == "leaving" and set(known.base.holders) & set(base.holders):
            self._take_out(known)
            known = None
        if known is not None:
            if not contract.republished(base, known.base) or known.mark != mark:
                raise contract.published_otherwise(known.base)
            return known
        for node_id in base.holders:
            if self._redis.scard(f"medes:node:{node_id}") >= contract.BASES_PER_NODE_MAX:
                raise LimitExceededError(
                    f"a node has at most {contract.BASES_PER_NODE_MAX} bases", object=node_id
                )
        # The node's set first, the record next, the slot last: whatever is there can be found from what was
        # written before it.
        for node_id in base.holders:
            self._redis.sadd(f"medes:node:{node_id}", base_key(base.base_id))
        record = Record(base, mark, "adding")
        if not self._redis.hsetnx(BASES, base_key(base.base_id), record.pack()):
            # Another controller was quicker with this id: what it wrote counts.
            return self._begin(base, mark)
        return record

    def _take_slot(self, record: Record) -> int:
        tag = domain_tag(record.base.domain)
        keys = (f"{tag}:slots", f"{tag}:slot_of", f"{tag}:next")
        slot = int(self._redis.eval(scripts.TAKE_SLOT, len(keys), *keys, base_key(record.base.base_id)))
        if slot < 0:
            self._take_out(record)
            raise LimitExceededError("no slot is free in this domain", object=record.base.domain)
        return slot

    def retire(self, base_id: int, node_id: str) -> bool:
        with self._mapped(f"base {base_id:#x}"):
            record = self._load(base_id)
            if record is None:
                return False
            if node_id not in record.base.holders:
                raise contract.held_by_others(record.base)
            self._leave(record, node_id)
            return True

    def retire_node(self, node_id: str) -> int:
        with self._mapped(f"medes:node:{node_id}"):
            count = 0
            for key in set(self._redis.sscan_iter(f"medes:node:{node_id}", count=SCAN_COUNT)):
                record = self._load(struct.unpack("<Q", key)[0]) if len(key) == KEY_BYTES else None
                if record is None or node_id not in record.base.holders:
                    # The attempt that wrote the set ended before the record, or lost the id to another node.
                    self._redis.srem(f"medes:node:{node_id}", key)
                else:
                    self._leave(record, node_id)
                    count += 1
            return count

    def _leave(self, record: Record, node_id: str) -> None:
        """Takes a holder out, and the base with its last one. Two controllers may do so for two holders at once: each
        writes only over what it has read."""
        key = base_key(record.base.base_id)
        for _ in range(LEAVE_RETRIES_MAX):
            left = record.base.without(node_id)
            if left is None or record.state == "leaving":
                self._take_out(record)
                return
            data = self._redis.hget(BASES, key)
            found = self._record(key, data)
            if found is None or node_id not in found.base.holders:
                break
            packed = dataclasses.replace(record, base=left).pack()
            if found == record and self._redis.eval(scripts.REPLACE, 1, BASES, key, data, packed):
                break
            record = found
        else:
            raise IoError("changed by others again and again", object=f"base {record.base.base_id:#x}")
        self._redis.srem(f"medes:node:{node_id}", key)

    def _take_out(self, record: Record) -> None:
        base, key, tag = record.base, base_key(record.base.base_id), domain_tag(record.base.domain)
        # Lookups leave it out from now on; the record itself goes last, so that this can be repeated.
        self._save(dataclasses.replace(record, state="leaving"))
        self._redis.srem(function_key(base.function, base.domain), key)
        prints = f"medes:prints:{base.base_id:x}"
        slot = self._redis.hget(f"{tag}:slot_of", key)
        if slot:
            for fields in _chunks(self._redis.get(prints) or b""):
                self._redis.eval(scripts.REMOVE, 1, f"{tag}:h", fields, slot)
            self._redis.hdel(f"{tag}:slots", slot)
            self._redis.hdel(f"{tag}:slot_of", key)
        self._redis.delete(prints)
        for node_id in base.holders:
            self._redis.srem(f"medes:node:{node_id}", key)
        self._redis.hdel(BASES, key)

    def _load(self, base_id: int) -> Record | None:
        key = base_key(base_id)
        return self._record(key, self._redis.hget(BASES, key), drop=True)

    def _record(self, key: bytes, data: bytes | None, *, drop: bool = False) -> Record | None:
        """None for a record that is none: it is said in the log and, with `drop`, taken out, so that its base may be
        published anew."""
        if not data:
            return None
        try:
            return Record.unpack(key, data)
        except CorruptError as error:
            log.warning("the registry in Redis was changed by somebody else, or damaged: %s", error)
            if drop:
                self._redis.hdel(BASES, key)
            return None

    def _save(self, record: Record) -> None:
        self._redis.hset(BASES, base_key(record.base.base_id), record.pack())

    # --- reading -------------------------------------------------------------------------------------------
    def lookup(self, domain: str, hashes: bytes, samples_per_page: int) -> Found:
        tag = domain_tag(domain)
        with self._mapped(f"domain {domain}, {tag}"):
            packed = b"".join(
                self._redis.eval(scripts.LOOKUP, 1, f"{tag}:h", fields) for fields in _chunks(hashes)
            )
            if len(packed) != len(hashes) * LOCATIONS_PER_HASH:
                raise IoError("Redis answered with another size than asked for", object=f"{tag}:h")
            # Slots are resolved after the hashes: a base that left in between is not there any more.
            slots = sorted(
                {low | high << 8 for low, high in set(zip(packed[6::8], packed[7::8], strict=True))}
                - {NONE_SLOT}
            )
            bases = self._bases_of(domain, slots)
        return _dense(packed, bases)

    def _bases_of(self, domain: str, slots: list[int]) -> dict[int, BaseDescriptor]:
        """Slot → base, for those that are published, in this domain."""
        if not slots:
            return {}
        keys = self._redis.hmget(f"{domain_tag(domain)}:slots", [slot_key(s) for s in slots])
        present = [(slot, key) for slot, key in zip(slots, keys, strict=True) if key]
        if not present:
            return {}
        rows = self._redis.hmget(BASES, [key for _, key in present])
        records = {slot: self._record(key, row) for (slot, key), row in zip(present, rows, strict=True)}
        return {
            slot: r.base
            for slot, r in records.items()
            if r is not None and r.state != "leaving" and r.base.domain == domain
        }

    def _records(self) -> Iterable[Record]:
        # A scan may tell of one twice.
        rows = dict(self._redis.hscan_iter(BASES, count=SCAN_COUNT))
        return (r for key, row in rows.items() if (r := self._record(key, row)) is not None)

    def bases(self) -> list[BaseDescriptor]:
        with self._mapped(BASES):
            return [r.base for r in self._records() if r.state == "ready"]

    def base_count(self, function: str, domain: str) -> int:
        with self._mapped(f"function {function}"):
            return int(self._redis.scard(function_key(function, domain)))

    def stats(self) -> StoreStats:
        with self._mapped(BASES):
            records = [r for r in self._records() if r.state == "ready"]
            tables = [f"{domain_tag(domain)}:h" for domain in {r.base.domain for r in records}]
            return StoreStats(
                bases=len(records),
                base_pages=sum(r.base.page_count for r in records),
                hashes=sum(int(self._redis.hlen(t)) for t in tables),
                bytes=sum(int(self._redis.memory_usage(t) or 0) for t in tables),
            )

    # --- leases --------------------------------------------------------------------------------------------
    def renew(self, node_ids: Iterable[str], lease_s: float) -> set[str]:
        new = set()
        with self._mapped("medes:lease"):
            for node_id in node_ids:
                if (
                    self._redis.eval(scripts.RENEW, 1, f"medes:lease:{node_id}", self._owner, _px(lease_s))
                    == 1
                ):
                    new.add(node_id)
        return new

    def take(self, node_id: str, lease_s: float) -> None:
        with self._mapped(f"medes:lease:{node_id}"):
            self._redis.set(f"medes:lease:{node_id}", self._owner, px=_px(lease_s))

    def retire_silent(self, node_id: str) -> int:
        with self._mapped(f"medes:lease:{node_id}"):
            held = self._redis.get(f"medes:lease:{node_id}")
        return 0 if held and held != self._owner else self.retire_node(node_id)

    def orphans(self) -> set[str]:
        with self._mapped(BASES):
            holders = {h for r in self._records() for h in r.base.holders}
            return {n for n in holders if not self._redis.exists(f"medes:lease:{n}")}

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._redis.close()


def _px(lease_s: float) -> int:
    return max(1, int(lease_s * 1000))


def _locations(slot: int, positions: bytes, samples_per_page: int) -> Iterator[int]:
    """The wire's packed location of each sample."""
    return (slot << 48 | (i // samples_per_page) << 16 | p << 8 for i, p in enumerate(positions))


def _dense(packed: bytes, bases: dict[int, BaseDescriptor]) -> Found:
    """Renumbers slots from 0 and blanks locations of bases that are not published."""
    order = {slot: i for i, slot in enumerate(bases)}
    low_bytes, high_bytes = packed[6::8], packed[7::8]
    pairs = set(zip(low_bytes, high_bytes, strict=True))
    new = {(low, high): order.get(low | high << 8, NONE_SLOT) for low, high in pairs}
    slots = [new[pair] for pair in zip(low_bytes, high_bytes, strict=True)]
    out = bytearray(packed)
    out[6::8] = bytes(slot & 0xFF for slot in slots)
    out[7::8] = bytes(slot >> 8 for slot in slots)
    if any(n == NONE_SLOT and low | high << 8 != NONE_SLOT for (low, high), n in new.items()):
        for i in itertools.compress(range(len(slots)), (slot == NONE_SLOT for slot in slots)):
            out[i * 8 : i * 8 + 8] = NO_LOCATION
    return Found(bytes(out), tuple(bases.values()))
