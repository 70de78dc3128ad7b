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
# An empty value of these is what a new message says anyway.
_UNSET = frozenset({type(None), int, float, str, bytes, bool, tuple, list, dict})
# Field names that are Python words or say too little on the wire: (dataclass, field) → proto field.
RENAMED = {("SandboxEvent", "previous"): "from"}
# Fields that became repeated: the field of before has the first value, for peers of the last version.
WAS_SINGLE = {("BaseDescriptor", "holders"): "node_id"}


@dataclasses.dataclass(frozen=True, slots=True)
class _Field:
    """How one field travels."""

    name: str
    proto_name: str
    read: Callable[[Any], Any]
    may_be_none: bool  # a sub-message or an `optional` field: present or not
    write: Callable[[Message, str, Any], None]
    single_name: str = ""  # of WAS_SINGLE


@functools.cache
def _plan(cls: typing.Any) -> tuple[_Field, ...]:
    hints = typing.get_type_hints(cls)
    return tuple(
        _Field(
            f.name,
            RENAMED.get((cls.__name__, f.name), f.name),
            _reader(hints[f.name]),
            type(None) in typing.get_args(hints[f.name]),
            _writer(hints[f.name]),
            WAS_SINGLE.get((cls.__name__, f.name), ""),
        )
        for f in dataclasses.fields(cls)
    )


def _inner(hint: Any) -> Any:
    """X of `X | None`."""
    if typing.get_origin(hint) is types.UnionType:
        return next(a for a in typing.get_args(hint) if a is not type(None))
    return hint


def _same(value: Any) -> Any:
    return value


def _reader(hint: Any) -> Callable[[Any], Any]:
    origin = typing.get_origin(hint)
    if origin is types.UnionType:  # X | None: the caller has checked that the message is there
        return _reader(_inner(hint))
    if origin is tuple:
        item = _reader(typing.get_args(hint)[0])
        return tuple if item is _same else lambda values: tuple(item(v) for v in values)
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


def _writer(hint: Any) -> Callable[[Message, str, Any], None]:
    hint = _inner(hint)
    origin = typing.get_origin(hint)
    if dataclasses.is_dataclass(hint):
        return _write_message
    if origin is dict:
        return lambda message, name, value: getattr(message, name).update(value)
    if origin is tuple and dataclasses.is_dataclass(typing.get_args(hint)[0]):
        return _write_messages
    if origin is tuple:
        return lambda message, name, value: getattr(message, name).extend(value)
    return setattr


def _write_message(message: Message, name: str, value: Any) -> None:
    target = getattr(message, name)
    target.SetInParent()
    fill(target, value)


def _write_messages(message: Message, name: str, values: Any) -> None:
    target = getattr(message, name)
    for value in values:
        fill(target.add(), value)


def from_proto(cls: type[T], message: Message) -> T:
    """The dataclass `cls` of a message. What is absent becomes None where the field allows it."""
    values: list[Any] = []
    for field in _plan(typing.cast(typing.Hashable, cls)):
        if field.may_be_none and not message.HasField(field.proto_name):
            values.append(None)
        elif field.single_name and not getattr(message, field.proto_name):
            values.append((getattr(message, field.single_name),))
        else:
            values.append(field.read(getattr(message, field.proto_name)))
    return cls(*values)


def to_proto(message_class: type[Message], value: Any) -> Message:
    """A new message with the dataclass's values. Raises invalid_argument for one that does not fit the field."""
    message = message_class()
    fill(message, value)
    return message


def fill(message: Message, value: Any) -> None:
    """Writes the dataclass's values into a message."""
    for field in _plan(typing.cast(typing.Hashable, type(value))):
        found = getattr(value, field.name)
        if found is None or (not found and not field.may_be_none and type(found) in _UNSET):
            continue
        try:
            field.write(message, field.proto_name, found)
            if field.single_name:
                setattr(message, field.single_name, found[0])
        except (TypeError, ValueError) as error:
            raise InvalidArgumentError(f"{field.name}: {error}", object=type(value).__name__) from error
