"""gRPC servicer of the peers' calls: protobuf in, handlers, protobuf out; nothing else happens here."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing
from typing import Any

from medes.agent import transport_fields
from medes.agent.agent import Agent
from medes.agent.peer_api import peer_handlers
from medes.agent.peer_api.fingerprint_service import FingerprintService
from medes.certs.parties import Role
from medes.rpc.convert import to_proto
from medes.rpc.gen import common_pb2, peer_pb2, peer_pb2_grpc
from medes.rpc.identity import RoleAccess, require_node

PEER_SERVICE = "medes.v1.PeerService"
PEER_ACCESS = RoleAccess(
    PEER_SERVICE,
    dict.fromkeys(
        peer_pb2.DESCRIPTOR.services_by_name["PeerService"].methods_by_name, frozenset({Role.NODE})
    ),
)


class PeerServicer(peer_pb2_grpc.PeerServiceServicer):  # type: ignore[misc]
    """Pins, page access and fingerprints for other agents."""

    def __init__(self, agent: Agent, pages: peer_handlers.PageAccessTable) -> None:
        self._agent = agent
        self._pages = pages
        self._fingerprints = FingerprintService(agent)

    def _uses(self, base_ids: Iterable[int]) -> list[Any]:
        bases = (self._agent.bases.bases.get(base_id) for base_id in base_ids)
        return [
            peer_pb2.BaseUse(
                base_id=b.base_id, bytes=b.slab.file_bytes, users=self._agent.pins.users(b.base_id)
            )
            for b in bases
            if b is not None
        ]

    def _check_node(self, context: Any, node_id: str) -> None:
        """A node speaks for itself only, and of domains that its certificate does not exclude."""
        party = require_node(context, node_id)
        if party is not None:
            self._agent.domain_rights.narrow(node_id, party.domains)

    async def Pin(self, request: Any, context: Any) -> Any:
        self._check_node(context, request.node_id)
        peer_handlers.check_base_count(request.node_id, len(request.base_ids))
        granted = await peer_handlers.pin(
            self._agent, request.node_id, request.holder_id, request.domain, list(request.base_ids)
        )
        response = peer_pb2.PinResponse()
        response.bases.extend(to_proto(common_pb2.BaseDescriptor, d) for d in granted)
        news = self._pages.news(request.node_id, request.domain, list(request.base_ids))
        transport_fields.put_news(response, news)
        response.uses.extend(self._uses(request.base_ids))
        return response

    async def Unpin(self, request: Any, context: Any) -> Any:
        self._check_node(context, request.node_id)
        peer_handlers.check_base_count(request.node_id, len(request.base_ids))
        await peer_handlers.unpin(self._agent, request.node_id, request.holder_id, list(request.base_ids))
        return peer_pb2.UnpinResponse()

    async def ReconcilePins(self, request: Any, context: Any) -> Any:
        self._check_node(context, request.node_id)
        peer_handlers.check_pin_sets(request.node_id, request.pins)
        pins = {p.holder_id: (p.domain, list(p.base_ids)) for p in request.pins}
        missing = await peer_handlers.reconcile(self._agent, request.node_id, pins, request.store)
        return peer_pb2.ReconcilePinsResponse(missing_base_ids=missing, store=self._agent.endpoints.store)

    async def OpenPages(self, request: Any, context: Any) -> Any:
        self._check_node(context, request.node_id)
        peer_handlers.check_offers(request.node_id, request.offers)
        offers = transport_fields.offers_of(request)
        access = self._pages.open(request.node_id, request.domain, offers)
        response = peer_pb2.OpenPagesResponse(
            token=access.token,
            token_valid_ms=max(1, int(access.valid_s * 1000)),
            page_address=access.page_address,
            store=self._agent.endpoints.store,
        )
        transport_fields.put_answers(response, access.answers)
        return response

    async def KeepPages(self, request: Any, context: Any) -> Any:
        self._check_node(context, request.node_id)
        in_use = transport_fields.in_use_of(request)
        peer_handlers.check_domain_count(
            request.node_id, len(request.domains) + sum(len(domains) for domains in in_use.values())
        )
        self._pages.keep(request.node_id, list(request.domains), in_use)
        pinned = self._agent.pins.bases_of_node(request.node_id)
        return peer_pb2.KeepPagesResponse(uses=self._uses(pinned))

    async def ListFingerprints(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self._check_node(context, request.node_id)
        parts = self._fingerprints.parts(
            request.node_id, request.domain, request.base_id, request.samples_per_page
        )
        async with aclosing(parts):
            async for hashes, positions in parts:
                yield peer_pb2.FingerprintPart(hashes=hashes, positions=positions)
