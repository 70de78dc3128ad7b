"""An agent servicer that keeps sandboxes in a dict: what client and command line tests talk to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from medes.rpc.gen import agent_pb2 as pb
from medes.rpc.gen import agent_pb2_grpc

from medes.errors import AlreadyExistsError, NotFoundError, UnsupportedError, WrongStateError
from medes.rpc.convert import to_proto
from medes.types import BaseDescriptor, BaseStatus, NodeStatus, SandboxState


class FakeAgent(agent_pb2_grpc.AgentServiceServicer):
    """States change at once; memory figures are made up."""

    def __init__(self) -> None:
        self.sandboxes: dict[str, Any] = {}
        self.requests: list[Any] = []
        self.knows_shares = True  # as agents since 0.1.0 are
        self.held: asyncio.Event | None = None  # what Dedup waits for
        self._watchers: list[asyncio.Queue[Any]] = []
        self._sequence = 0

    def _find(self, sandbox_id: str) -> Any:
        if sandbox_id not in self.sandboxes:
            raise NotFoundError("no such sandbox", object=sandbox_id, hint="medes sandbox ls")
        return self.sandboxes[sandbox_id]

    def _move(self, sandbox: Any, state: SandboxState, reason: str) -> Any:
        self._sequence += 1
        event = pb.SandboxEvent(reason=reason, sequence=self._sequence)
        setattr(event, "from", sandbox.state)
        sandbox.state = int(state)
        event.sandbox.CopyFrom(sandbox)
        for queue in self._watchers:
            queue.put_nowait(event)
        return sandbox

    async def Register(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        sandbox_id = request.sandbox_id or f"sb-{len(self.sandboxes)}"
        if sandbox_id in self.sandboxes:
            raise AlreadyExistsError("registered already", object=sandbox_id)
        self.sandboxes[sandbox_id] = pb.Sandbox(
            sandbox_id=sandbox_id,
            function=request.function,
            tenant=request.tenant,
            domain=request.domain or request.tenant,
            pids=request.pids,
            driver="live",
            warm_bytes=100 << 20,
            node_id="fake",
        )
        return self._move(self.sandboxes[sandbox_id], SandboxState.WARM, "registered")

    async def NotifyActivity(self, request: Any, context: Any) -> Any:
        sandbox = self._find(request.sandbox_id)
        begun = request.activity == pb.NotifyActivityRequest.BEGUN
        return self._move(sandbox, SandboxState.RUNNING if begun else SandboxState.WARM, "activity")

    async def Activities(self, requests: Any, context: Any) -> None:
        """As an agent of a version that does not have the call."""
        raise UnsupportedError("no such call", object="Activities")

    async def Dedup(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        if self.held is not None:
            await self.held.wait()
        sandbox = self._find(request.sandbox_id)
        if sandbox.state != SandboxState.WARM:
            raise WrongStateError("is not idle", object=request.sandbox_id)
        sandbox.kept_bytes = 10 << 20
        report = pb.DedupReport(
            warm_bytes=100 << 20,
            saved_bytes=85 << 20,
            base_share_bytes=5 << 20,
            gross_saved_bytes=90 << 20,
            pages_by_kind=[1, 2, 3, 4, 5],
            stopped_us=1500,
            total_us=250_000,
            stage_us={"encode": 9},
            notes=[pb.Note(code=pb.NOTE_CODE_PAGES_STAY, text="1 page is mlocked")],
        )
        if not self.knows_shares:
            report.saved_bytes = report.gross_saved_bytes
            report.ClearField("gross_saved_bytes")
            report.ClearField("base_share_bytes")
        sandbox.last_dedup.CopyFrom(report)
        sandbox.dedup_count += 1
        return pb.DedupResponse(sandbox=self._move(sandbox, SandboxState.DEDUP, "asked"), report=report)

    async def Restore(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        sandbox = self._find(request.sandbox_id)
        was_dedup = sandbox.state == SandboxState.DEDUP
        report = pb.RestoreReport(was_dedup=was_dedup, pages_total=25_600, ready_us=8_000)
        sandbox.restore_count += was_dedup
        return pb.RestoreResponse(sandbox=self._move(sandbox, SandboxState.WARM, "asked"), report=report)

    async def Purge(self, request: Any, context: Any) -> Any:
        self._move(self._find(request.sandbox_id), SandboxState.PURGED, "asked")
        del self.sandboxes[request.sandbox_id]
        return pb.PurgeResponse()

    async def Get(self, request: Any, context: Any) -> Any:
        return self._find(request.sandbox_id)

    async def List(self, request: Any, context: Any) -> Any:
        wanted = [s for s in self.sandboxes.values() if request.function in ("", s.function)]
        return pb.ListResponse(sandboxes=wanted)

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:
        queue: asyncio.Queue[Any] = asyncio.Queue()
        self._watchers.append(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self._watchers.remove(queue)

    async def GetNode(self, request: Any, context: Any) -> Any:
        base = BaseStatus(BaseDescriptor(5, ("fake",), "d", "f", 10), 40960, 2)
        return to_proto(pb.NodeStatus, NodeStatus("fake", bases=(base,), pages_read_by_transport={"tcp": 3}))
