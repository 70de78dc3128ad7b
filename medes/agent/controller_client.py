"""The controller as the agent calls it: typed values in and out; one of the agent's files that see protobuf."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from medes import native
from medes.certs.identity import Identity
from medes.certs.parties import CONTROLLER_SERVER_NAME
from medes.errors import ControllerUnreachableError
from medes.rpc.calls import AioChannel
from medes.rpc.channel import Calls, LastingStub, aio_channel
from medes.rpc.convert import from_proto, to_proto
from medes.rpc.gen import common_pb2, controller_pb2, controller_pb2_grpc
from medes.types import BaseDescriptor, FunctionUsage, NodeEndpoints, NodeUsage, SandboxRecord


@dataclass(frozen=True, slots=True)
class Joined:
    """The answer to JoinNode."""

    samples_per_page: int
    heartbeat_interval_ms: int
    lease_ms: int
    controller_incarnation: str


@dataclass(frozen=True, slots=True)
class Lookup:
    """Packed locations (see controller.proto), slot → base, and who holds them."""

    locations: bytes
    bases: tuple[BaseDescriptor, ...]
    holders: tuple[NodeEndpoints, ...]


class ControllerClient:
    """Raises catalogue errors; controller_unreachable when it does not answer."""

    def __init__(self, address: str, identity: Identity | None = None, *, calls: Calls | None = None) -> None:
        """`calls` take the place of a channel to the address."""
        self.address = address

        def channel() -> AioChannel:
            return aio_channel(
                address,
                identity,
                server_name=CONTROLLER_SERVER_NAME,
                unreachable=ControllerUnreachableError,
            )

        self._connection: Calls = calls or LastingStub(
            controller_pb2_grpc.ControllerServiceStub, channel, identity
        )

    @property
    def _stub(self) -> Any:
        return self._connection.stub

    async def join(
        self, endpoints: NodeEndpoints, memory_bytes: int, incarnation: str, timeout_s: float
    ) -> Joined:
        request = controller_pb2.JoinNodeRequest(
            endpoints=to_proto(common_pb2.NodeEndpoints, endpoints),
            memory_bytes=memory_bytes,
            incarnation=incarnation,
        )
        answer = await self._stub.JoinNode(request, timeout=timeout_s)
        return Joined(
            answer.samples_per_page,
            answer.heartbeat_interval_ms,
            answer.lease_ms,
            answer.controller_incarnation,
        )

    async def heartbeat(
        self,
        node_id: str,
        incarnation: str,
        usage: NodeUsage,
        timeout_s: float,
        functions: Sequence[FunctionUsage] | None = None,
    ) -> tuple[str, bool]:
        """(controller incarnation, join again). Without `functions` those told before stand."""
        request = controller_pb2.HeartbeatRequest(
            node_id=node_id, incarnation=incarnation, usage=to_proto(controller_pb2.NodeUsage, usage)
        )
        if functions is not None:
            request.functions.SetInParent()
            request.functions.functions.extend(to_proto(common_pb2.FunctionUsage, f) for f in functions)
        answer = await self._stub.Heartbeat(request, timeout=timeout_s)
        return answer.controller_incarnation, answer.join_again

    async def leave(self, node_id: str, incarnation: str, timeout_s: float) -> None:
        request = controller_pb2.LeaveNodeRequest(node_id=node_id, incarnation=incarnation)
        await self._stub.LeaveNode(request, timeout=timeout_s)

    async def nodes(self) -> dict[str, NodeEndpoints]:
        answer = await self._stub.ListNodes(controller_pb2.ListNodesRequest())
        return {n.endpoints.node_id: from_proto(NodeEndpoints, n.endpoints) for n in answer.nodes}

    async def lookup(self, node_id: str, domain: str, hashes: bytes, samples_per_page: int) -> Lookup:
        request = controller_pb2.LookupFingerprintsRequest(
            node_id=node_id, domain=domain, samples_per_page=samples_per_page, hashes=hashes
        )
        answer = await self._stub.LookupFingerprints(request)
        return Lookup(
            answer.locations,
            tuple(from_proto(BaseDescriptor, b) for b in answer.bases),
            tuple(from_proto(NodeEndpoints, h) for h in answer.holders),
        )

    async def publish(self, descriptor: BaseDescriptor, fingerprints: native.Fingerprints) -> None:
        request = controller_pb2.PublishBaseRequest(
            base=to_proto(common_pb2.BaseDescriptor, descriptor),
            samples_per_page=fingerprints.samples_per_page,
            hashes=fingerprints.hashes,
            positions=fingerprints.positions,
        )
        await self._stub.PublishBase(request)

    async def retire(self, node_id: str, base_id: int) -> None:
        await self._stub.RetireBase(controller_pb2.RetireBaseRequest(base_id=base_id, node_id=node_id))

    async def advise(self, node_id: str, function: str, domain: str, sandbox_id: str) -> tuple[bool, str]:
        """(make a base, reason)"""
        answer = await self._stub.AdviseBase(
            controller_pb2.AdviseBaseRequest(
                node_id=node_id, function=function, domain=domain, sandbox_id=sandbox_id
            )
        )
        return answer.make_base, answer.reason

    async def announce(self, node_id: str, records: list[SandboxRecord], *, full: bool) -> None:
        request = controller_pb2.AnnounceSandboxesRequest(node_id=node_id, full=full)
        request.sandboxes.extend(to_proto(controller_pb2.SandboxRecord, r) for r in records)
        await self._stub.AnnounceSandboxes(request)

    async def close(self) -> None:
        await self._connection.close()
