"""Bounds on what callers send: every name, count and length is checked before anything is kept or allocated."""

from __future__ import annotations

from medes.errors import InvalidArgumentError, LimitExceededError
from medes.limits import (
    ADDRESS_CHARS_MAX,
    ADDRESS_RANGES_MAX,
    HOLDERS_PER_BASE_MAX,
    LOOKUP_PAGES_MAX,
    NAME_CHARS_MAX,
    SANDBOXES_PER_NODE_MAX,
    TRANSPORTS_PER_NODE_MAX,
)
from medes.rpc.address import parse_address
from medes.types import BaseDescriptor, NodeEndpoints, SandboxRecord

HASH_BYTES = 8


def name(value: str, what: str, *, optional: bool = False) -> None:
    """A name is non-empty printable text of at most NAME_CHARS_MAX characters."""
    if not value and not optional:
        raise InvalidArgumentError("is missing", object=what)
    if len(value) > NAME_CHARS_MAX:
        raise LimitExceededError(f"longer than {NAME_CHARS_MAX} characters", object=what)
    if not value.isprintable():
        raise InvalidArgumentError("has control characters", object=what)


def endpoints(value: NodeEndpoints) -> None:
    name(value.node_id, "node_id")
    for what in ("grpc_address", "page_address"):
        text = getattr(value, what)
        if len(text) > ADDRESS_CHARS_MAX:
            raise LimitExceededError(f"longer than {ADDRESS_CHARS_MAX} characters", object=what)
        if text:
            parse_address(text)
    transport_count(len(value.transports), value.node_id)
    name(value.store, "store", optional=True)
    for transport in value.transports:
        name(transport, "transport")


# Counts are checked on the message, before a Python object is made of each.
def transport_count(count: int, node_id: str) -> None:
    if count > TRANSPORTS_PER_NODE_MAX:
        raise LimitExceededError(f"more than {TRANSPORTS_PER_NODE_MAX} transports", object=node_id[:50])


def range_count(count: int, base_id: int) -> None:
    if count > ADDRESS_RANGES_MAX:
        raise LimitExceededError(
            f"more than {ADDRESS_RANGES_MAX} address ranges", object=f"base {base_id:#x}"
        )


def holder_count(count: int, base_id: int) -> None:
    if count > HOLDERS_PER_BASE_MAX:
        raise LimitExceededError(f"more than {HOLDERS_PER_BASE_MAX} holders", object=f"base {base_id:#x}")


def sandbox_count(count: int, node_id: str) -> None:
    if count > SANDBOXES_PER_NODE_MAX:
        raise LimitExceededError(f"more than {SANDBOXES_PER_NODE_MAX} sandboxes", object=node_id[:50])


def samples(got: int, wanted: int) -> None:
    """All nodes of a cluster must sample alike, or nothing matches."""
    if got != wanted:
        raise InvalidArgumentError(
            f"samples_per_page is {got}, the cluster's is {wanted}", hint="use the value from JoinNode"
        )


def hashes(data: bytes, samples_per_page: int) -> int:
    """The page count of packed hashes."""
    page_bytes = samples_per_page * HASH_BYTES
    if len(data) % page_bytes:
        raise InvalidArgumentError(f"{len(data)} bytes are no whole pages of {page_bytes}", object="hashes")
    pages = len(data) // page_bytes
    if pages > LOOKUP_PAGES_MAX:
        raise LimitExceededError(f"{pages} pages, at most {LOOKUP_PAGES_MAX}", object="hashes")
    return pages


def base(value: BaseDescriptor, page_count: int, positions: bytes, samples_per_page: int) -> None:
    """With the hashes and positions that come with it; published by its only holder."""
    descriptor(value)
    where = f"base {value.base_id:#x}"
    if len(value.holders) != 1:
        raise InvalidArgumentError("a node publishes what it holds itself, for itself only", object=where)
    if page_count == 0 or value.page_count != page_count:
        raise InvalidArgumentError(
            f"page_count {value.page_count}, but hashes of {page_count} pages", object=where
        )
    if len(positions) != page_count * samples_per_page:
        raise InvalidArgumentError(
            f"{len(positions)} positions for {page_count * samples_per_page} hashes", object=where
        )


def descriptor(value: BaseDescriptor) -> None:
    """What a base says of itself."""
    if not value.base_id:
        raise InvalidArgumentError("is missing", object="base_id")
    holder_count(len(value.holders), value.base_id)
    for holder in value.holders:
        name(holder, "holders")
    name(value.domain, "domain")
    name(value.function, "function")
    where = f"base {value.base_id:#x}"
    if len(set(value.holders)) != len(value.holders):
        raise InvalidArgumentError("a holder is named twice", object=where)
    if not 0 < value.page_count <= LOOKUP_PAGES_MAX:
        raise InvalidArgumentError(f"page_count {value.page_count}", object=where)
    range_count(len(value.ranges), value.base_id)
    if any(r.begin >= r.end for r in value.ranges):
        raise InvalidArgumentError("an address range is empty or reversed", object=where)


def sandboxes(values: tuple[SandboxRecord, ...], node_id: str) -> None:
    sandbox_count(len(values), node_id)
    for record in values:
        name(record.sandbox_id, "sandbox_id")
        name(record.function, "function", optional=True)
        name(record.domain, "domain", optional=True)
        if record.node_id not in ("", node_id):
            raise InvalidArgumentError(
                f"announced by {node_id} for node {record.node_id}", object=record.sandbox_id
            )
