"""RDMA as a page transport: an RdmaNode, with what it tells peers as bytes."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Self

from medes import native
from medes.config import AgentSettings
from medes.errors import InvalidArgumentError
from medes.transport.rdma.messages import (
    pack_answer,
    pack_endpoint,
    pack_regions,
    unpack_answer,
    unpack_endpoint,
    unpack_regions,
)
from medes.transport.rdma.rdma_node import RdmaAnswer, RdmaNode, open_rdma, parse_devices
from medes.transport.transport import Exchange, Transport

log = logging.getLogger(__name__)


class RdmaTransport(Transport):
    """One-sided reads from registered slabs. It does not encrypt: `rdma_devices` names ports on a fabric of the
    cluster's own."""

    name = "rdma"
    preference = 10

    def __init__(self, node: RdmaNode) -> None:
        self._node = node

    @classmethod
    def open(cls, settings: AgentSettings) -> Self:
        return cls(open_rdma(settings.rdma_devices))

    @classmethod
    def trusts(cls, settings: AgentSettings) -> bool:
        return bool(parse_devices(settings.rdma_devices))

    @property
    def where(self) -> str:
        return ", ".join(self._node.ports)

    def publish(self, slab: native.Slab, domain: str) -> bool:
        return self._node.publish(slab, domain)

    def withdraw(self, base_id: int) -> None:
        self._node.retire(base_id)

    def accept(self, node_id: str, domain: str, offer: bytes, now_s: float, valid_s: float) -> bytes | None:
        return pack_answer(self._node.accept(node_id, domain, unpack_endpoint(offer), now_s, valid_s))

    def news(self, node_id: str, domain: str, base_ids: Iterable[int]) -> bytes:
        return pack_regions(self._node.regions(node_id, domain, base_ids))

    def release(self, node_id: str, domain: str) -> None:
        self._node.release(node_id, domain)

    def keep(self, node_id: str, domains: Iterable[str], now_s: float) -> None:
        self._node.keep(node_id, domains, now_s)

    def reap(self, silent_since_s: float, now_s: float) -> int:
        return self._node.reap(silent_since_s, now_s)

    async def attach(
        self, node_id: str, domain: str, behind: native.PageReader, exchange: Exchange
    ) -> native.PageReader | None:
        async def typed(endpoint: native.RdmaEndpoint) -> RdmaAnswer:
            return unpack_answer(await exchange(pack_endpoint(endpoint)))

        reader = await self._node.attach(node_id, domain, behind, typed)
        return None if reader is behind else reader

    def learn(self, node_id: str, domain: str, news: bytes) -> None:
        try:
            self._node.add_regions(node_id, domain, unpack_regions(news))
        except InvalidArgumentError as error:
            log.warning("%s: %s", node_id, error)

    def keep_bases(self, node_id: str, base_ids: Iterable[int]) -> None:
        self._node.keep_regions(node_id, base_ids)

    def in_use(self, node_id: str) -> list[str]:
        return self._node.in_use(node_id)

    async def run(self) -> None:
        await self._node.run()

    def stats(self) -> dict[str, int]:
        return self._node.stats()

    def close(self) -> None:
        self._node.close()
