"""Another agent's peer service as this one calls it; one of the agent's files that see protobuf."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from medes import native
from medes.certs.identity import Identity
from medes.certs.parties import node_server_name
from medes.errors import CorruptError, PeerUnreachableError
from medes.limits import PAGE_TOKEN_S_MAX
from medes.rpc.calls import AioChannel
from medes.rpc.channel import LastingStub, aio_channel
from medes.rpc.convert import from_proto
from medes.rpc.gen import peer_pb2, peer_pb2_grpc
from medes.transport.rdma import NO_RDMA, RdmaAnswer
from medes.types import BaseDescriptor

PEER_TIMEOUT_S = 5.0
# The holder reads the whole base for it, after those who asked before.
FINGERPRINTS_TIMEOUT_S = 60.0
HASH_BYTES = 8


def endpoint_to_proto(endpoint: native.RdmaEndpoint) -> peer_pb2.RdmaEndpoint:
    return peer_pb2.RdmaEndpoint(
        queue_pair_number=endpoint.queue_pair_number,
        packet_sequence_number=endpoint.packet_sequence_number,
        gid=endpoint.gid,
        lid=endpoint.lid,
        path_mtu=endpoint.path_mtu,
        max_rd_atomic=endpoint.max_rd_atomic,
        port=endpoint.port,
    )


def endpoint_from_proto(value: peer_pb2.RdmaEndpoint) -> native.RdmaEndpoint:
    """Raises invalid_argument for a GID that is not 16 bytes."""
    return native.RdmaEndpoint(
        value.queue_pair_number,
        value.packet_sequence_number,
        value.gid,
        value.lid,
        value.path_mtu,
        value.max_rd_atomic,
        value.port,
    )


def region_to_proto(region: native.RdmaRegion) -> peer_pb2.RdmaRegion:
    return peer_pb2.RdmaRegion(
        base_id=region.base_id, address=region.address, length=region.length, remote_key=region.remote_key
    )


def region_from_proto(value: peer_pb2.RdmaRegion) -> native.RdmaRegion:
    return native.RdmaRegion(value.base_id, value.address, value.length, value.remote_key)


@dataclass(frozen=True, slots=True)
class PageAccess:
    """What OpenPages grants: where the page server is and the token for it."""

    token: bytes
    page_address: str
    rdma: RdmaAnswer = NO_RDMA
    store: str = ""  # whose pages
    valid_s: float = 0.0  # how long the token is good; 0: as long as there is access


class PeerClient:
    """Raises catalogue errors; peer_unreachable when the agent does not answer within PEER_TIMEOUT_S."""

    def __init__(self, own_node: str, node_id: str, address: str, identity: Identity | None = None) -> None:
        """`node_id` is whom to reach at `address`: with an identity nobody else will do."""
        self._own_node = own_node
        self.address = address
        # (domain, regions) of pinned bases, where the peer serves them over RDMA
        self.on_regions: Callable[[str, list[native.RdmaRegion]], None] = lambda domain, regions: None
        # (base id → bytes, users; whether these are all that this node pins there)
        self.on_uses: Callable[[dict[int, tuple[int, int]], bool], None] = lambda uses, whole: None

        def channel() -> AioChannel:
            return aio_channel(
                address,
                identity,
                server_name=node_server_name(node_id),
                unreachable=PeerUnreachableError,
                timeout_s=PEER_TIMEOUT_S,
            )

        self._connection = LastingStub(peer_pb2_grpc.PeerServiceStub, channel, identity)

    @property
    def _stub(self) -> Any:
        return self._connection.stub

    async def pin(self, holder: str, domain: str, base_ids: Iterable[int]) -> list[BaseDescriptor]:
        """All or none: raises not_found when one of the bases cannot be pinned."""
        request = peer_pb2.PinRequest(
            node_id=self._own_node, holder_id=holder, domain=domain, base_ids=list(base_ids)
        )
        answer = await self._stub.Pin(request)
        if answer.regions:
            self.on_regions(domain, [region_from_proto(r) for r in answer.regions])
        self.on_uses({u.base_id: (u.bytes, u.users) for u in answer.uses}, False)
        return [from_proto(BaseDescriptor, b) for b in answer.bases]

    async def unpin(self, holder: str, base_ids: Iterable[int]) -> None:
        request = peer_pb2.UnpinRequest(node_id=self._own_node, holder_id=holder, base_ids=list(base_ids))
        await self._stub.Unpin(request)

    async def reconcile(
        self, pins: Mapping[str, tuple[str, Iterable[int]]], own_store: str
    ) -> tuple[set[int], str]:
        """`pins`: holder → (domain, base ids), all that this node holds there. Returns the bases that the peer lacks, and
        whose store it has."""
        request = peer_pb2.ReconcilePinsRequest(node_id=self._own_node, store=own_store)
        for holder, (domain, base_ids) in pins.items():
            request.pins.add(holder_id=holder, domain=domain, base_ids=list(base_ids))
        answer = await self._stub.ReconcilePins(request)
        return set(answer.missing_base_ids), answer.store

    async def open_pages(self, domain: str, rdma: native.RdmaEndpoint | None = None) -> PageAccess:
        """Access over TCP; with `rdma`, our queue pair's endpoint, over RDMA as well where the peer can."""
        request = peer_pb2.OpenPagesRequest(node_id=self._own_node, domain=domain)
        if rdma is not None:
            request.rdma.CopyFrom(endpoint_to_proto(rdma))
        answer = await self._stub.OpenPages(request)
        endpoint = endpoint_from_proto(answer.rdma) if answer.HasField("rdma") else None
        regions = tuple(region_from_proto(r) for r in answer.regions)
        valid_s = min(answer.token_valid_ms / 1000, 2 * PAGE_TOKEN_S_MAX)
        return PageAccess(
            answer.token, answer.page_address, RdmaAnswer(endpoint, regions), answer.store, valid_s
        )

    async def keep_pages(self, domains: Iterable[str], rdma_domains: Iterable[str]) -> None:
        """Access to these domains is still in use, over a queue pair where in `rdma_domains`."""
        request = peer_pb2.KeepPagesRequest(
            node_id=self._own_node, domains=list(domains), rdma_domains=list(rdma_domains)
        )
        answer = await self._stub.KeepPages(request)
        self.on_uses({u.base_id: (u.bytes, u.users) for u in answer.uses}, True)

    async def fingerprints(self, base: BaseDescriptor, samples_per_page: int) -> tuple[bytes, bytes]:
        """Hashes (u64) and positions (u8) of all pages of a base of the peer, as native.Fingerprints has them.

        Waits at most FINGERPRINTS_TIMEOUT_S. Raises not_found for a base that is gone or retired, busy, and corrupt
        when the answer does not fit the base.
        """
        request = peer_pb2.ListFingerprintsRequest(
            node_id=self._own_node,
            domain=base.domain,
            base_id=base.base_id,
            samples_per_page=samples_per_page,
        )
        wanted = base.page_count * samples_per_page
        hashes, positions = bytearray(), bytearray()
        async for part in self._stub.ListFingerprints(request, timeout=FINGERPRINTS_TIMEOUT_S):
            hashes += part.hashes
            positions += part.positions
            if len(positions) > wanted or len(hashes) != len(positions) * HASH_BYTES:
                break
        if len(positions) != wanted or len(hashes) != wanted * HASH_BYTES:
            raise CorruptError(
                f"{len(hashes)} bytes of hashes and {len(positions)} positions for {wanted} samples",
                object=f"base {base.base_id:016x}",
            )
        return bytes(hashes), bytes(positions)

    async def close(self) -> None:
        await self._connection.close()
