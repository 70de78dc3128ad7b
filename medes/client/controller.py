"""The controller for Python callers: what the command line shows and what agents ask."""

from __future__ import annotations

from medes.certs.parties import CONTROLLER_SERVER_NAME, Role
from medes.client.connection import AioConnection, BlockingConnection
from medes.client.messages import request
from medes.errors import ControllerUnreachableError
from medes.places import DEFAULT_CONTROLLER_ADDRESS
from medes.rpc.convert import from_proto
from medes.rpc.gen import controller_pb2 as pb
from medes.rpc.gen.controller_pb2_grpc import ControllerServiceStub
from medes.types import NodeRecord, SandboxRecord, Statistics


class ControllerClient(BlockingConnection):
    """Blocking. Raises controller_unreachable when the controller does not answer."""

    DEFAULT_ADDRESS = DEFAULT_CONTROLLER_ADDRESS
    UNREACHABLE = ControllerUnreachableError
    ROLE = Role.OBSERVER
    SERVER_NAME = CONTROLLER_SERVER_NAME
    STUB = ControllerServiceStub

    def nodes(self) -> list[NodeRecord]:
        """All nodes the controller knows, dead ones included."""
        return [from_proto(NodeRecord, n) for n in self.stub.ListNodes(pb.ListNodesRequest()).nodes]

    def sandboxes(self, function: str = "", node_id: str = "") -> list[SandboxRecord]:
        """The sandbox directory."""
        answer = self.stub.ListSandboxes(request(pb.ListSandboxesRequest, function=function, node_id=node_id))
        return [from_proto(SandboxRecord, s) for s in answer.sandboxes]

    def statistics(self) -> Statistics:
        """Counters of the controller."""
        return from_proto(Statistics, self.stub.GetStatistics(pb.GetStatisticsRequest()))


class AsyncControllerClient(AioConnection):
    """asyncio twin; create it inside the loop that uses it. `stub` has the calls that agents make."""

    DEFAULT_ADDRESS = DEFAULT_CONTROLLER_ADDRESS
    UNREACHABLE = ControllerUnreachableError
    ROLE = Role.OBSERVER
    SERVER_NAME = CONTROLLER_SERVER_NAME
    STUB = ControllerServiceStub

    async def nodes(self) -> list[NodeRecord]:
        """All nodes the controller knows, dead ones included."""
        return [from_proto(NodeRecord, n) for n in (await self.stub.ListNodes(pb.ListNodesRequest())).nodes]

    async def sandboxes(self, function: str = "", node_id: str = "") -> list[SandboxRecord]:
        """The sandbox directory."""
        answer = await self.stub.ListSandboxes(
            request(pb.ListSandboxesRequest, function=function, node_id=node_id)
        )
        return [from_proto(SandboxRecord, s) for s in answer.sandboxes]

    async def statistics(self) -> Statistics:
        """Counters of the controller."""
        return from_proto(Statistics, await self.stub.GetStatistics(pb.GetStatisticsRequest()))
