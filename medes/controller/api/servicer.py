"""The gRPC face of the controller: messages → requests → handlers → messages, and nothing else."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, TypeVar

from google.protobuf.message import Message

from medes.certs.parties import Party
from medes.controller import checks
from medes.controller.api import handlers, requests
from medes.controller.state import ControllerState
from medes.errors import BusyError
from medes.limits import REGISTRY_CALLS_QUEUED_MAX
from medes.rpc.convert import fill, from_proto, to_proto
from medes.rpc.gen import controller_pb2 as pb
from medes.rpc.gen import controller_pb2_grpc
from medes.rpc.identity import caller, require_node

T = TypeVar("T")


class ControllerServicer(controller_pb2_grpc.ControllerServiceServicer):
    """Handlers that touch the store run in `executor`; the others are quick and run on the loop."""

    def __init__(self, state: ControllerState, executor: Executor, clock: Callable[[], float]) -> None:
        self._state = state
        self._executor = executor
        self._clock = clock
        self._store_calls = 0

    async def _in_executor(self, function: Callable[..., T], *arguments: Any) -> T:
        if self._store_calls >= REGISTRY_CALLS_QUEUED_MAX:
            raise BusyError(
                "too many registry calls are waiting", object="controller", hint="try again shortly"
            )
        self._store_calls += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._executor, functools.partial(function, *arguments))
        finally:
            self._store_calls -= 1

    async def JoinNode(self, request: Any, context: Any) -> Message:
        checks.transport_count(len(request.endpoints.transports), request.endpoints.node_id)
        ask = from_proto(requests.JoinNode, request)
        require_node(context, ask.endpoints.node_id)
        answer = await self._in_executor(handlers.join_node, ask, self._state, self._clock(), context.peer())
        return to_proto(pb.JoinNodeResponse, answer)

    async def Heartbeat(self, request: Message, context: Any) -> Message:
        ask = from_proto(requests.Heartbeat, request)
        require_node(context, ask.node_id)
        return to_proto(pb.HeartbeatResponse, handlers.heartbeat(ask, self._state, self._clock()))

    async def LeaveNode(self, request: Any, context: Any) -> Message:
        require_node(context, request.node_id)
        await self._in_executor(handlers.leave_node, request.node_id, self._state, request.incarnation)
        return pb.LeaveNodeResponse()

    async def ListNodes(self, request: Message, context: Any) -> Message:
        response = pb.ListNodesResponse()
        party = caller(context)
        for record in await self._in_executor(handlers.list_nodes, self._state, self._clock(), party):
            fill(response.nodes.add(), record)
        return response

    async def LookupFingerprints(self, request: Message, context: Any) -> Message:
        ask = from_proto(requests.LookupFingerprints, request)
        party = require_node(context, ask.node_id)
        answer = await self._in_executor(handlers.lookup_fingerprints, ask, self._state, self._clock, party)
        return to_proto(pb.LookupFingerprintsResponse, answer)

    async def PublishBase(self, request: Any, context: Any) -> Message:
        checks.range_count(len(request.base.ranges), request.base.base_id)
        checks.holder_count(len(request.base.holders), request.base.base_id)
        ask = from_proto(requests.PublishBase, request)
        party = require_node(context, ask.base.holders[0])
        await self._in_executor(handlers.publish_base, ask, self._state, party)
        return pb.PublishBaseResponse()

    async def RetireBase(self, request: Message, context: Any) -> Message:
        ask = from_proto(requests.RetireBase, request)
        require_node(context, ask.node_id)
        await self._in_executor(handlers.retire_base, ask, self._state)
        return pb.RetireBaseResponse()

    async def AdviseBase(self, request: Message, context: Any) -> Message:
        ask = from_proto(requests.AdviseBase, request)
        party = require_node(context, ask.node_id)
        answer = await self._in_executor(handlers.advise_base, ask, self._state, self._clock(), party)
        return to_proto(pb.AdviseBaseResponse, answer)

    async def AnnounceSandboxes(self, request: Any, context: Any) -> Message:
        party = require_node(context, request.node_id)
        checks.sandbox_count(len(request.sandboxes), request.node_id)
        # A full announcement may hold 100,000 of them: heartbeats must not wait for that.
        await self._in_executor(self._announce, request, party)
        return pb.AnnounceSandboxesResponse()

    def _announce(self, request: Message, party: Party | None) -> None:
        handlers.announce_sandboxes(from_proto(requests.AnnounceSandboxes, request), self._state, party)

    async def ListSandboxes(self, request: Message, context: Any) -> Message:
        return await self._in_executor(self._list, from_proto(requests.ListSandboxes, request))

    def _list(self, ask: requests.ListSandboxes) -> Message:
        response = pb.ListSandboxesResponse()
        for record in handlers.list_sandboxes(ask, self._state):
            fill(response.sandboxes.add(), record)
        return response

    async def GetStatistics(self, request: Message, context: Any) -> Message:
        return to_proto(pb.GetStatisticsResponse, await self._in_executor(self._state.statistics))
