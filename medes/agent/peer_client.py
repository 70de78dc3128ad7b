"""Another agent's peer service as this one calls it; one of the agent's files that see protobuf."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from medes.agent import transport_fields
from medes.certs.identity import Identity
from medes.certs.parties import node_server_name
from medes.errors import CorruptError, PeerUnreachableError
from medes.limits import PAGE_TOKEN_S_MAX
from medes.rpc.calls import AioChannel
from medes.rpc.channel import Calls, LastingStub, aio_channel
from medes.rpc.convert import from_proto
from medes.rpc.gen import peer_pb2, peer_pb2_grpc
from medes.types import BaseDescriptor

PEER_TIMEOUT_S = 5.0
# The holder reads the whole base for it, after those who asked before.
FINGERPRINTS_TIMEOUT_S = 60.0
HASH_BYTES = 8


@dataclass(frozen=True, slots=True)
class PageAccess:
    """What OpenPages grants: where the page server is and the token for it."""

    token: bytes
    page_address: str
    answers: Mapping[str, bytes] = field(default_factory=dict)  # to the offers of other transports than TCP
    store: str = ""  # whose pages
    valid_s: float = 0.0  # how long the token is good; 0: as long as there is access


class PeerClient:
    """Raises catalogue errors; peer_unreachable when the agent does not answer within PEER_TIMEOUT_S."""

    def __init__(
        self,
        own_node: str,
        node_id: str,
        address: str,
        identity: Identity | None = None,
        *,
        calls: Calls | None = None,
    ) -> None:
        """`node_id` is whom to reach at `address`: with an identity nobody else will do. `calls` take the place of a channel
        there."""
        self._own_node = own_node
        self.address = address
        # (domain, transport → what it tells of pinned bases)
        self.on_news: Callable[[str, Mapping[str, bytes]], None] = lambda domain, news: None
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

        self._connection: Calls = calls or LastingStub(peer_pb2_grpc.PeerServiceStub, channel, identity)

    @property
    def _stub(self) -> Any:
        return self._connection.stub

    async def pin(self, holder: str, domain: str, base_ids: Iterable[int]) -> list[BaseDescriptor]:
        """All or none: raises not_found when one of the bases cannot be pinned."""
        request = peer_pb2.PinRequest(
            node_id=self._own_node, holder_id=holder, domain=domain, base_ids=list(base_ids)
        )
        answer = await self._stub.Pin(request)
        if news := transport_fields.news_of(answer):
            self.on_news(domain, news)
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

    async def open_pages(self, domain: str, offers: Mapping[str, bytes] | None = None) -> PageAccess:
        """Access over TCP; by the transports whose offers are given as well, where the peer answers them."""
        request = peer_pb2.OpenPagesRequest(node_id=self._own_node, domain=domain)
        transport_fields.put_offers(request, offers or {})
        answer = await self._stub.OpenPages(request)
        valid_s = min(answer.token_valid_ms / 1000, 2 * PAGE_TOKEN_S_MAX)
        answers = transport_fields.answers_of(answer)
        return PageAccess(answer.token, answer.page_address, answers, answer.store, valid_s)

    async def keep_pages(self, domains: Iterable[str], in_use: Mapping[str, Sequence[str]]) -> None:
        """Access to these domains is still in use; `in_use`: transport → those that it reads."""
        request = peer_pb2.KeepPagesRequest(node_id=self._own_node, domains=list(domains))
        transport_fields.put_in_use(request, in_use)
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
