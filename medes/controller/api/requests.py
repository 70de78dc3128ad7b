"""Requests and answers of the controller's handlers, field by field those of controller.proto."""

from __future__ import annotations

from dataclasses import dataclass

from medes.types import BaseDescriptor, FunctionUsage, NodeEndpoints, NodeUsage, SandboxRecord


@dataclass(frozen=True, slots=True)
class JoinNode:
    endpoints: NodeEndpoints
    memory_bytes: int
    incarnation: str


@dataclass(frozen=True, slots=True)
class Joined:
    samples_per_page: int
    heartbeat_interval_ms: int
    lease_ms: int
    controller_incarnation: str


@dataclass(frozen=True, slots=True)
class FunctionUsages:
    functions: tuple[FunctionUsage, ...] = ()


@dataclass(frozen=True, slots=True)
class Heartbeat:
    node_id: str
    incarnation: str
    usage: NodeUsage
    functions: FunctionUsages | None = None  # None: as last told


@dataclass(frozen=True, slots=True)
class HeartbeatAnswer:
    controller_incarnation: str
    join_again: bool


@dataclass(frozen=True, slots=True)
class LookupFingerprints:
    node_id: str
    domain: str
    samples_per_page: int
    hashes: bytes


@dataclass(frozen=True, slots=True)
class Lookup:
    locations: bytes
    bases: tuple[BaseDescriptor, ...]
    holders: tuple[NodeEndpoints, ...]


@dataclass(frozen=True, slots=True)
class PublishBase:
    base: BaseDescriptor
    samples_per_page: int
    hashes: bytes
    positions: bytes


@dataclass(frozen=True, slots=True)
class RetireBase:
    base_id: int
    node_id: str


@dataclass(frozen=True, slots=True)
class AdviseBase:
    node_id: str
    function: str
    domain: str
    sandbox_id: str


@dataclass(frozen=True, slots=True)
class Advice:
    make_base: bool
    reason: str


@dataclass(frozen=True, slots=True)
class AnnounceSandboxes:
    node_id: str
    full: bool
    sandboxes: tuple[SandboxRecord, ...]


@dataclass(frozen=True, slots=True)
class ListSandboxes:
    function: str
    node_id: str
