"""Protobuf messages ↔ the dataclasses of medes.types, by equal field names."""

from __future__ import annotations

import dataclasses
import enum
import functools
import types
import typing
from collections.abc import Callable
from typing import Any, TypeVar

from google.protobuf.message import Message

from medes.errors import InvalidArgumentError

T = TypeVar("T")
# Field names that are Python words or say too little on the wire: (dataclass, field) → proto field.
RENAMED = {("SandboxEvent", "previous"): "from"}


@functools.cache
def _plan(cls: typing.Any) -> tuple[tuple[str, str, Callable[[Any], Any]], ...]:
    """(dataclass field, proto field, reader) of each field."""
    hints = typing.get_type_hints(cls)
    return tuple(
        (f.name, RENAMED.get((cls.__name__, f.name), f.name), _reader(hints[f.name]))
        for f in dataclasses.fields(cls)
    )


def _same(value: Any) -> Any:
    return value


def _reader(hint: Any) -> Callable[[Any], Any]:
    origin = typing.get_origin(hint)
    if origin is types.UnionType:  # X | None: the caller has checked that the message is there
        inner = next(a for a in typing.get_args(hint) if a is not type(None))
        return _reader(inner)
    if origin is tuple:
        item = _reader(typing.get_args(hint)[0])
        return lambda values: tuple(item(v) for v in values)
    if origin is dict:
        return dict
    if dataclasses.is_dataclass(hint):
        return functools.partial(from_proto, typing.cast(type, hint))
    if isinstance(hint, type) and issubclass(hint, enum.IntEnum):
        return lambda number: _enum_value(hint, number)
    return _same


def _enum_value(cls: type[enum.IntEnum], number: int) -> enum.IntEnum:
    try:
        return cls(number)
    except ValueError:
        # A newer peer may know more states: what we do not know is unspecified.
        return cls(0)


def from_proto(cls: type[T], message: Message) -> T:
    """The dataclass `cls` of a message. An unset sub-message becomes None where the field allows it."""
    values: dict[str, Any] = {}
    for name, proto_name, read in _plan(typing.cast(typing.Hashable, cls)):
        value = getattr(message, proto_name)
        if isinstance(value, Message) and not message.HasField(proto_name):
            hint = typing.get_type_hints(cls)[name]
            if type(None) in typing.get_args(hint):
                values[name] = None
                continue
        values[name] = read(value)
    return cls(**values)


def to_proto(message_class: type[Message], value: Any) -> Message:
    """A new message with the dataclass's values. Raises invalid_argument for one that does not fit the field."""
    message = message_class()
    fill(message, value)
    return message


def fill(message: Message, value: Any) -> None:
    """Writes the dataclass's values into a message."""
    for name, proto_name, _ in _plan(typing.cast(typing.Hashable, type(value))):
        field = getattr(value, name)
        try:
            _set(message, proto_name, field)
        except (TypeError, ValueError) as error:
            raise InvalidArgumentError(f"{name}: {error}", object=type(value).__name__) from error


def _set(message: Message, name: str, field: Any) -> None:
    if field is None:
        return
    target = getattr(message, name)
    if dataclasses.is_dataclass(field):
        target.SetInParent()
        fill(target, field)
    elif isinstance(field, dict):
        target.update(field)
    elif isinstance(field, (tuple, list)):
        if field and dataclasses.is_dataclass(field[0]):
            for item in field:
                fill(target.add(), item)
        else:
            target.extend(field)
    else:
        setattr(message, name, field)
