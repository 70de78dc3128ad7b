"""The restore API for asyncio callers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from medes.certs.parties import Role
from medes.client.aio_activity import AioActivityCalls
from medes.client.connection import AioConnection
from medes.client.messages import (
    DEDUP_TIMEOUT_S,
    RESTORE_TIMEOUT_S,
    register_request,
    request,
)
from medes.limits import API_REQUEST_BYTES_MAX
from medes.places import DEFAULT_AGENT_ADDRESS
from medes.rpc.convert import from_proto
from medes.rpc.gen import agent_pb2 as pb
from medes.rpc.gen.agent_pb2_grpc import AgentServiceStub
from medes.types import (
    Activity,
    BaseStatus,
    DedupResult,
    Explanation,
    LifecycleSettings,
    NodeStatus,
    OrphanFile,
    RestoreResult,
    Sandbox,
    SandboxEvent,
)


class AsyncMedesClient(AioConnection):
    """Calls one agent. Connects on first use; close it, or use it as a context manager.

    Every method raises the agent's error from medes.errors, agent_unreachable when none answers, deadline_exceeded
    after the call's timeout (timeout_s unless the method has its own) and wrong_state on a closed client. Create it inside the
    event loop that uses it.
    """

    DEFAULT_ADDRESS = DEFAULT_AGENT_ADDRESS
    HAS_USER_SOCKET = True
    STUB = AgentServiceStub
    REQUEST_BYTES_MAX = API_REQUEST_BYTES_MAX
    ROLE = Role.RUNTIME

    def _made(self) -> None:
        self._activities = AioActivityCalls(self.stub, self._channel)

    async def register(
        self,
        function: str,
        *,
        pids: Sequence[int] = (),
        cgroup: str = "",
        subject: str = "",
        sandbox_id: str = "",
        tenant: str = "",
        domain: str = "",
        lifecycle: LifecycleSettings | None = None,
        driver: str = "",
        hook_address: str = "",
        purge_kills: bool = False,
    ) -> Sandbox:
        """Puts processes (with their descendants), or all of a cgroup, under the agent's care as a warm sandbox;
        or what a driver without processes knows as `subject`.

        An empty sandbox_id lets the agent choose one; an empty domain means the tenant.
        """
        message = register_request(
            function,
            pids,
            cgroup,
            subject,
            sandbox_id,
            tenant,
            domain,
            lifecycle,
            driver,
            hook_address,
            purge_kills,
        )
        return from_proto(Sandbox, await self.stub.Register(message))

    async def begin(self, sandbox_id: str) -> Sandbox:
        """A request begins: the sandbox is busy until end(). Cancels a dedup op under way."""
        return await self._notify(sandbox_id, Activity.BEGUN)

    async def end(self, sandbox_id: str) -> Sandbox:
        """A request has ended: the sandbox is idle from now on."""
        return await self._notify(sandbox_id, Activity.ENDED)

    async def _notify(self, sandbox_id: str, activity: Activity) -> Sandbox:
        return from_proto(Sandbox, await self._activities.ask(sandbox_id, activity))

    async def dedup(
        self,
        sandbox_id: str,
        *,
        make_base: bool = False,
        hold_frozen: bool = False,
        timeout_s: float = DEDUP_TIMEOUT_S,
    ) -> DedupResult:
        """Cuts an idle sandbox down to patches; returns when that is done."""
        message = request(
            pb.DedupRequest, sandbox_id=sandbox_id, make_base=make_base, hold_frozen=hold_frozen
        )
        return from_proto(DedupResult, await self.stub.Dedup(message, timeout=timeout_s))

    async def restore(
        self,
        sandbox_id: str,
        *,
        eager: bool = False,
        queue_deadline_ms: int = 0,
        timeout_s: float = RESTORE_TIMEOUT_S,
    ) -> RestoreResult:
        """Wakes a sandbox. Returns when it runs, or, eager, when its last page is in.

        A warm one is answered at once (`report.was_dedup` false). queue_deadline_ms bounds the wait for its turn
        (0: the agent's setting); raises busy after it, lost when the sandbox must be cold-started.
        """
        message = request(
            pb.RestoreRequest, sandbox_id=sandbox_id, eager=eager, deadline_ms=queue_deadline_ms
        )
        return from_proto(RestoreResult, await self.stub.Restore(message, timeout=timeout_s))

    async def purge(self, sandbox_id: str) -> None:
        """Ends the agent's care; kills the processes where they were registered with purge_kills."""
        await self.stub.Purge(request(pb.PurgeRequest, sandbox_id=sandbox_id))

    async def get(self, sandbox_id: str) -> Sandbox:
        """One sandbox. Raises not_found."""
        return from_proto(Sandbox, await self.stub.Get(request(pb.GetRequest, sandbox_id=sandbox_id)))

    async def explain(self, sandbox_id: str) -> Explanation:
        """Why a sandbox is in its state, what it holds, what its last ops did, what happens next. Raises not_found."""
        message = request(pb.ExplainRequest, sandbox_id=sandbox_id)
        return from_proto(Explanation, await self.stub.Explain(message))

    async def bases(self, function: str = "", domain: str = "") -> Sequence[BaseStatus]:
        """The bases that this node holds, of one function or domain if named."""
        message = request(pb.ListBasesRequest, function=function, domain=domain)
        return [from_proto(BaseStatus, b) for b in (await self.stub.ListBases(message)).bases]

    async def remove_base(self, base_id: int, *, force: bool = False) -> int:
        """Frees a base that nobody pins; returns its bytes. With `force` also one that sandboxes of its function here
        would use next. Raises not_found, and wrong_state with who pins it."""
        message = request(pb.RemoveBaseRequest, base_id=base_id, force=force)
        return int((await self.stub.RemoveBase(message)).freed_bytes)

    async def unpin_node(self, node_id: str, *, force: bool = False) -> tuple[int, int]:
        """Gives up what a node that will not come back pins here; returns how many pins, and the bytes that are free at
        once. Raises not_found without any, and wrong_state while it is heard of, unless with `force`."""
        message = request(pb.UnpinNodeRequest, node_id=node_id, force=force)
        answer = await self.stub.UnpinNode(message)
        return int(answer.pins), int(answer.freed_bytes)

    async def list(self, function: str = "") -> list[Sandbox]:
        """All sandboxes of the node, or of one function."""
        answer = await self.stub.List(request(pb.ListRequest, function=function))
        return [from_proto(Sandbox, s) for s in answer.sandboxes]

    async def watch(self, function: str = "") -> AsyncIterator[SandboxEvent]:
        """State changes from now on, without end. Close the iterator (or the client) to stop."""
        stream = self.stub.Watch(request(pb.WatchRequest, function=function))
        try:
            async for event in stream:
                yield from_proto(SandboxEvent, event)
        finally:
            stream.cancel()

    async def node(self) -> NodeStatus:
        """Memory, bases and drivers of the agent's node."""
        return from_proto(NodeStatus, await self.stub.GetNode(pb.GetNodeRequest()))

    async def orphans(self) -> Sequence[OrphanFile]:
        """Files in the node's shared memory that the agent does not know."""
        answer = await self.stub.ListOrphans(pb.ListOrphansRequest())
        return [from_proto(OrphanFile, o) for o in answer.orphans]

    async def remove_orphan(self, name: str) -> None:
        """Removes one of them for good. A living process may need it. Raises not_found, io."""
        await self.stub.RemoveOrphan(pb.RemoveOrphanRequest(name=name))
