"""The controller for Python callers: what the command line shows and what agents ask."""

from __future__ import annotations

from types import TracebackType

from medes.errors import ControllerUnreachableError
from medes.limits import RPC_TIMEOUT_S
from medes.rpc.channel import aio_channel, sync_channel
from medes.rpc.convert import from_proto
from medes.rpc.gen import controller_pb2 as pb
from medes.rpc.gen.controller_pb2_grpc import ControllerServiceStub
from medes.rpc.tls import TlsFiles
from medes.types import NodeRecord, SandboxRecord, Statistics

DEFAULT_CONTROLLER_ADDRESS = "127.0.0.1:7070"


class ControllerClient:
    """Blocking. Raises controller_unreachable when the controller does not answer."""

    def __init__(
        self,
        address: str = DEFAULT_CONTROLLER_ADDRESS,
        *,
        tls: TlsFiles | None = None,
        timeout_s: float = RPC_TIMEOUT_S,
    ) -> None:
        self.address = address
        self._channel = sync_channel(
            address, tls, unreachable=ControllerUnreachableError, timeout_s=timeout_s
        )
        self.stub = ControllerServiceStub(self._channel)

    def nodes(self) -> list[NodeRecord]:
        """All nodes the controller knows, dead ones included."""
        return [from_proto(NodeRecord, n) for n in self.stub.ListNodes(pb.ListNodesRequest()).nodes]

    def sandboxes(self, function: str = "", node_id: str = "") -> list[SandboxRecord]:
        """The sandbox directory."""
        answer = self.stub.ListSandboxes(pb.ListSandboxesRequest(function=function, node_id=node_id))
        return [from_proto(SandboxRecord, s) for s in answer.sandboxes]

    def statistics(self) -> Statistics:
        """Counters of the controller."""
        return from_proto(Statistics, self.stub.GetStatistics(pb.GetStatisticsRequest()))

    def close(self) -> None:
        """Idempotent."""
        self._channel.close()

    def __enter__(self) -> ControllerClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncControllerClient:
    """asyncio twin; create it inside the loop that uses it. `stub` has the calls that agents make."""

    def __init__(
        self,
        address: str = DEFAULT_CONTROLLER_ADDRESS,
        *,
        tls: TlsFiles | None = None,
        timeout_s: float = RPC_TIMEOUT_S,
    ) -> None:
        self.address = address
        self._channel = aio_channel(address, tls, unreachable=ControllerUnreachableError, timeout_s=timeout_s)
        self.stub = ControllerServiceStub(self._channel)

    async def nodes(self) -> list[NodeRecord]:
        """All nodes the controller knows, dead ones included."""
        return [from_proto(NodeRecord, n) for n in (await self.stub.ListNodes(pb.ListNodesRequest())).nodes]

    async def sandboxes(self, function: str = "", node_id: str = "") -> list[SandboxRecord]:
        """The sandbox directory."""
        answer = await self.stub.ListSandboxes(pb.ListSandboxesRequest(function=function, node_id=node_id))
        return [from_proto(SandboxRecord, s) for s in answer.sandboxes]

    async def statistics(self) -> Statistics:
        """Counters of the controller."""
        return from_proto(Statistics, await self.stub.GetStatistics(pb.GetStatisticsRequest()))

    async def close(self) -> None:
        """Idempotent."""
        await self._channel.close()

    async def __aenter__(self) -> AsyncControllerClient:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()
