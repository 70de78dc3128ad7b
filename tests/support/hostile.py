"""Messages with hostile field values: long, empty, huge, nested."""

from __future__ import annotations

import random
from typing import Any

from google.protobuf.descriptor import FieldDescriptor


def scramble(message: Any, rng: random.Random) -> None:
    """Sets fields to hostile values: long, empty, negative, huge, nested."""
    for field in message.DESCRIPTOR.fields:
        if rng.random() < 0.3:
            continue
        values = [_hostile(field, rng) for _ in range(rng.choice((1, 3)) if field.is_repeated else 1)]
        if _is_map(field):
            _fill_map(getattr(message, field.name), field, rng, len(values))
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            for _ in values:
                target = getattr(message, field.name)
                scramble(target.add() if field.is_repeated else target, rng)
        elif field.is_repeated:
            getattr(message, field.name).extend(values)
        else:
            setattr(message, field.name, values[0])


def _is_map(field: Any) -> bool:
    return field.type == FieldDescriptor.TYPE_MESSAGE and field.message_type.GetOptions().map_entry


def _fill_map(container: Any, field: Any, rng: random.Random, count: int) -> None:
    key, value = field.message_type.fields_by_name["key"], field.message_type.fields_by_name["value"]
    for _ in range(count):
        if value.type == FieldDescriptor.TYPE_MESSAGE:
            scramble(container[_hostile(key, rng)], rng)
        else:
            container[_hostile(key, rng)] = _hostile(value, rng)


def _hostile(field: Any, rng: random.Random) -> Any:
    kind = field.type
    if kind == FieldDescriptor.TYPE_STRING:
        return rng.choice(["", "x", "n1", "a" * 5000, "\x00", "../..", "ü" * 201, "h:1", "[::1]:99999"])
    if kind == FieldDescriptor.TYPE_BYTES:
        return rng.randbytes(rng.choice([0, 1, 7, 8, 64, 65, 4096]))
    if kind == FieldDescriptor.TYPE_BOOL:
        return rng.random() < 0.5
    if kind == FieldDescriptor.TYPE_ENUM:
        return rng.choice([0, 1, 7, 99])
    return rng.choice([0, 1, 8, 2**31 - 1, 2**32 - 1 if "32" in str(kind) else 2**20])
