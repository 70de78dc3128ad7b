"""gRPC servicer of the restore API: protobuf in, handlers, protobuf out; nothing else happens here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from medes.agent.agent import Agent
from medes.agent.api import bases_view, handlers
from medes.agent.api.activity_stream import ActivityStream
from medes.agent.api.explain import explain
from medes.agent.api.registration import Registration
from medes.agent.sandboxes.users import refuse_reserved
from medes.certs.parties import Role
from medes.rpc.convert import fill, from_proto, to_proto
from medes.rpc.gen import agent_pb2, agent_pb2_grpc
from medes.rpc.identity import RoleAccess
from medes.rpc.services import Observer
from medes.types import Activity, LifecycleSettings, Sandbox

AGENT_SERVICE = "medes.v1.AgentService"
LISTED_AT_ONCE = 100  # sandboxes made into messages before others get their turn: a few milliseconds

# Who may call over TCP; whoever can open the unix socket may call everything.
_LOOKS = frozenset({Role.RUNTIME, Role.OBSERVER})
API_ACCESS = RoleAccess(
    AGENT_SERVICE,
    {
        **dict.fromkeys(
            agent_pb2.DESCRIPTOR.services_by_name["AgentService"].methods_by_name, frozenset({Role.RUNTIME})
        ),
        **dict.fromkeys(("Get", "List", "Watch", "GetNode"), _LOOKS),
    },
)


def _sandbox(sandbox: Sandbox) -> Any:
    return to_proto(agent_pb2.Sandbox, sandbox)


class AgentServicer(agent_pb2_grpc.AgentServiceServicer):  # type: ignore[misc]
    """The restore API."""

    def __init__(self, agent: Agent, observer: Observer | None = None) -> None:
        """`observer` is told of what comes over streams; of calls it hears elsewhere."""
        self._agent = agent
        self._observer = observer
        self._streams: set[asyncio.Task[Any]] = set()

    async def Register(self, request: Any, context: Any) -> Any:
        refuse_reserved(request.sandbox_id)
        return await self._register(request)

    async def _register(self, request: Any) -> Any:
        registration = Registration(
            sandbox_id=request.sandbox_id,
            function=request.function,
            tenant=request.tenant,
            domain=request.domain,
            pids=tuple(request.pids),  # at most what fits into API_REQUEST_BYTES_MAX
            cgroup=request.cgroup,
            subject=request.subject,
            lifecycle=from_proto(LifecycleSettings, request.lifecycle),
            driver=request.driver,
            hook_address=request.hook_address,
            purge_kills=request.purge_kills,
        )
        return _sandbox(await handlers.register(self._agent, registration))

    async def NotifyActivity(self, request: Any, context: Any) -> Any:
        try:
            activity = Activity(request.activity)
        except ValueError:
            activity = Activity.UNSPECIFIED
        return _sandbox(await handlers.notify_activity(self._agent, request.sandbox_id, activity))

    async def Activities(self, requests: Any, context: Any) -> None:
        stream = ActivityStream(self._agent, context, self._observer)
        task = asyncio.current_task()
        assert task is not None
        self._streams.add(task)
        try:
            await stream.serve()
        finally:
            self._streams.discard(task)

    def end_streams(self) -> None:
        """The agent stops: what callers hold open for ever ends now."""
        for task in self._streams:
            task.cancel()

    async def Dedup(self, request: Any, context: Any) -> Any:
        result = await handlers.dedup(
            self._agent,
            request.sandbox_id,
            make_base=request.make_base,
            hold_frozen=True if request.hold_frozen else None,
        )
        return to_proto(agent_pb2.DedupResponse, result)

    async def Restore(self, request: Any, context: Any) -> Any:
        result = await handlers.restore(
            self._agent, request.sandbox_id, eager=request.eager, deadline_ms=request.deadline_ms
        )
        return to_proto(agent_pb2.RestoreResponse, result)

    async def Purge(self, request: Any, context: Any) -> Any:
        await handlers.purge(self._agent, request.sandbox_id)
        return agent_pb2.PurgeResponse()

    async def Get(self, request: Any, context: Any) -> Any:
        return _sandbox(handlers.get(self._agent, request.sandbox_id))

    async def Explain(self, request: Any, context: Any) -> Any:
        return to_proto(agent_pb2.Explanation, explain(self._agent, request.sandbox_id))

    async def ListBases(self, request: Any, context: Any) -> Any:
        found = await bases_view.list_bases(self._agent, request.function, request.domain)
        response = agent_pb2.ListBasesResponse()
        response.bases.extend(to_proto(agent_pb2.BaseStatus, b) for b in found)
        return response

    async def RemoveBase(self, request: Any, context: Any) -> Any:
        freed = await bases_view.remove_base(self._agent, request.base_id, force=request.force)
        return agent_pb2.RemoveBaseResponse(freed_bytes=freed)

    async def UnpinNode(self, request: Any, context: Any) -> Any:
        pins, freed = await bases_view.unpin_node(self._agent, request.node_id, force=request.force)
        return agent_pb2.UnpinNodeResponse(pins=pins, freed_bytes=freed)

    async def List(self, request: Any, context: Any) -> Any:
        response = agent_pb2.ListResponse()
        for number, sandbox in enumerate(handlers.list_sandboxes(self._agent, request.function), 1):
            fill(response.sandboxes.add(), sandbox)
            if number % LISTED_AT_ONCE == 0:
                await asyncio.sleep(0)  # a node of thousands must not keep requests waiting
        return response

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:
        async for event in self._agent.watch.events(request.function):
            yield to_proto(agent_pb2.SandboxEvent, event)

    async def GetNode(self, request: Any, context: Any) -> Any:
        return to_proto(agent_pb2.NodeStatus, handlers.node_status(self._agent))

    async def ListOrphans(self, request: Any, context: Any) -> Any:
        response = agent_pb2.ListOrphansResponse()
        found = await handlers.list_orphans(self._agent)
        response.orphans.extend(to_proto(agent_pb2.OrphanFile, o) for o in found)
        return response

    async def RemoveOrphan(self, request: Any, context: Any) -> Any:
        await handlers.remove_orphan(self._agent, request.name)
        return agent_pb2.RemoveOrphanResponse()
