"""An agent as the controller sees it: joins, beats, announces again when the controller is a new one."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from typing import Any

from medes.rpc.gen import common_pb2
from medes.rpc.gen import controller_pb2 as pb

from medes.certs.identity import Identity
from medes.client import AsyncControllerClient
from medes.errors import MedesError, NotFoundError
from medes.rpc.convert import to_proto
from medes.types import AddressRange, BaseDescriptor, FunctionUsage, SandboxRecord, SandboxState
from tests.support.certificates import of_run
from tests.support.fingerprints import K, hashes, positions


class FakeNode:
    """One node with bases (id → pages; the id seeds their hashes) and sandboxes. Use inside an event loop."""

    def __init__(self, node_id: str, address: str, tls: Identity | None = None) -> None:
        self.node_id = node_id
        self.incarnation = secrets.token_hex(4)
        self.client = AsyncControllerClient(address, tls=tls or of_run(node_id), timeout_s=10)
        self.observer = AsyncControllerClient(address, timeout_s=10)  # what a node may not ask
        self.bases: dict[int, int] = {}
        self.sandboxes: dict[str, SandboxRecord] = {}
        self.functions: tuple[FunctionUsage, ...] = ()
        self.announced_to = ""  # the controller incarnation that knows all of ours
        self._task: asyncio.Task[None] | None = None
        self._interval_s = 0.1

    async def join(self) -> Any:
        endpoints = common_pb2.NodeEndpoints(
            node_id=self.node_id, grpc_address="127.0.0.1:1", page_address="127.0.0.1:2", transports=["tcp"]
        )
        answer = await self.client.stub.JoinNode(
            pb.JoinNodeRequest(endpoints=endpoints, memory_bytes=1 << 30, incarnation=self.incarnation)
        )
        self._interval_s = answer.heartbeat_interval_ms / 1000
        for base_id in self.bases:
            await self.publish(base_id)
        records = [to_proto(pb.SandboxRecord, r) for r in self.sandboxes.values()]
        await self.client.stub.AnnounceSandboxes(
            pb.AnnounceSandboxesRequest(node_id=self.node_id, full=True, sandboxes=records)
        )
        self.announced_to = answer.controller_incarnation
        return answer

    def base_request(self, base_id: int, pages: int) -> pb.PublishBaseRequest:
        base = BaseDescriptor(base_id, (self.node_id,), "d", "f", pages, (AddressRange(0, 1 << 40),))
        return pb.PublishBaseRequest(
            base=to_proto(common_pb2.BaseDescriptor, base),
            samples_per_page=K,
            hashes=hashes(base_id, pages),
            positions=positions(pages),
        )

    async def publish(self, base_id: int, pages: int | None = None) -> None:
        self.bases[base_id] = self.bases.get(base_id, 0) if pages is None else pages
        await self.client.stub.PublishBase(self.base_request(base_id, self.bases[base_id]))

    async def beat(self) -> bool:
        """One heartbeat; joins again where it must. True when the controller had to be told all anew."""
        rows = [to_proto(common_pb2.FunctionUsage, f) for f in self.functions]
        answer = await self.client.stub.Heartbeat(
            pb.HeartbeatRequest(
                node_id=self.node_id,
                incarnation=self.incarnation,
                usage=pb.NodeUsage(warm_bytes=5),
                functions=pb.FunctionUsages(functions=rows),
            )
        )
        if answer.join_again or answer.controller_incarnation != self.announced_to:
            await self.join()
            return True
        return False

    async def host(self, domain: str = "d") -> None:
        """A sandbox in the domain: a node hears of no other."""
        record = SandboxRecord(f"{self.node_id}-in-{domain}", self.node_id, "f", domain, SandboxState.WARM)
        await self.client.stub.AnnounceSandboxes(
            pb.AnnounceSandboxesRequest(node_id=self.node_id, sandboxes=[to_proto(pb.SandboxRecord, record)])
        )

    async def lookup(self, base_id: int, pages: int, domain: str = "d") -> Any:
        own = any(s.domain == domain for s in self.sandboxes.values())
        if not own and not self.client.address.startswith("unix:"):
            try:
                await self.host(domain)
            except NotFoundError:  # not joined, or silent for too long
                await self.join()
                await self.host(domain)
        return await self.client.stub.LookupFingerprints(
            pb.LookupFingerprintsRequest(
                node_id=self.node_id, domain=domain, samples_per_page=K, hashes=hashes(base_id, pages)
            )
        )

    def keep_beating(self) -> None:
        self._task = asyncio.create_task(self._beat_for_ever())

    async def _beat_for_ever(self) -> None:
        while True:
            with contextlib.suppress(MedesError):  # the controller is away: try again
                await self.beat()
            await asyncio.sleep(self._interval_s)

    async def close(self) -> None:
        if self._task:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self.client.close()
        await self.observer.close()
