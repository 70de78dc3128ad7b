"""The transport conformance suite over RDMA, alone and with TCP behind it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.page_links import Link, SlabWorld, rdma_link
from tests.support.transport_conformance import PeerConformance, TransportConformance

pytestmark = pytest.mark.rdma


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> SlabWorld:
    return SlabWorld(tmp_path_factory.mktemp("slabs"))


class TestRdma(TransportConformance):
    @pytest.fixture
    def link(self, world: SlabWorld) -> Iterator[Link]:
        link = rdma_link(world, fallback=False)
        yield link
        link.close()


class TestRdmaWithTcpBehind(PeerConformance):
    @pytest.fixture
    def link(self, world: SlabWorld) -> Iterator[Link]:
        link = rdma_link(world, fallback=True)
        yield link
        link.close()
