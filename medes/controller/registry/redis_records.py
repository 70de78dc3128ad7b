"""Keys and records of the registry in Redis; redis_store says what lies under each."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import struct

from medes.controller import checks
from medes.errors import CorruptError, MedesError
from medes.types import BaseDescriptor

BASES = "medes:bases"
RECORD_BYTES_MAX = 64 << 10
KEY_BYTES = 8


def base_key(base_id: int) -> bytes:
    return struct.pack("<Q", base_id)


def slot_key(slot: int) -> bytes:
    return struct.pack("<H", slot)


def domain_tag(domain: str) -> str:
    return f"medes:{{{hashlib.sha256(domain.encode()).hexdigest()[:16]}}}"


def function_key(function: str, domain: str) -> str:
    return f"{domain_tag(domain)}:f:{hashlib.sha256(function.encode()).hexdigest()[:32]}"


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """What medes:bases holds of a base."""

    base: BaseDescriptor
    mark: int
    state: str  # adding | ready | leaving

    def pack(self) -> bytes:
        fields = {"base": self.base.to_json(), "mark": self.mark, "state": self.state}
        return json.dumps(fields).encode()

    @staticmethod
    def unpack(key: bytes, data: bytes) -> Record:
        """Raises corrupt for what is not a base's record, or another base's."""
        try:
            if len(data) > RECORD_BYTES_MAX:
                raise ValueError(f"{len(data)} bytes")
            fields = json.loads(data)
            record = Record(BaseDescriptor.from_json(fields.pop("base")), **fields)
            record.check()
            if base_key(record.base.base_id) != key:
                raise ValueError("another base's")
        except (
            ValueError,
            TypeError,
            KeyError,
            AttributeError,
            RecursionError,
            struct.error,
            MedesError,
        ) as error:
            raise CorruptError(
                f"is no record of a base: {error!r:.200}", object=f"{BASES} {key[:16].hex()}"
            ) from error
        return record

    def check(self) -> None:
        """Raises type_error, value_error or a catalogue error for what no controller has written."""
        base = self.base
        numbers = (
            base.base_id,
            base.page_count,
            self.mark,
            *(n for r in base.ranges for n in (r.begin, r.end)),
        )
        if (
            any(type(n) is not int or not 0 <= n < 1 << 64 for n in numbers)
            or type(base.value_only) is not bool
        ):
            raise ValueError("a number is none")
        if self.state not in ("adding", "ready", "leaving"):
            raise ValueError("no such state")
        checks.descriptor(base)
