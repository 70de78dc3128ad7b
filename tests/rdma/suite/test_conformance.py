"""The transport conformance suite over RDMA, alone and with TCP behind it, in every mode of the fault decorator."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from medes.config import AgentSettings
from medes.transport.rdma.rdma_transport import RdmaTransport
from tests.conformance.transport_access import AccessConformance
from tests.conformance.transport_faults import TRANSPARENT, FaultConformance, slabs
from tests.conformance.transports import PeerConformance, TransportConformance
from tests.support.page_links import Link, SlabWorld, rdma_link
from tests.support.transport_pair import Pair, transport_link

pytestmark = pytest.mark.rdma


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> SlabWorld:
    return slabs(tmp_path_factory)


@pytest.mark.parametrize("mode", TRANSPARENT)
class TestRdma(TransportConformance):
    @pytest.fixture
    def link(self, world: SlabWorld, mode: str) -> Iterator[Link]:
        link = rdma_link(world, fallback=False, wrap=TRANSPARENT[mode])
        yield link
        link.close()


# Emulation is slow: one by one they run over RDMA alone.
@pytest.mark.parametrize("mode", ["undisturbed", "all of these"])
class TestRdmaWithTcpBehind(PeerConformance):
    @pytest.fixture
    def link(self, world: SlabWorld, mode: str) -> Iterator[Link]:
        link = rdma_link(world, fallback=True, wrap=TRANSPARENT[mode])
        yield link
        link.close()


@pytest.mark.parametrize("fallback", [False, True], ids=["alone", "with TCP behind"])
class TestFaults(FaultConformance):
    @pytest.fixture
    def link(self, world: SlabWorld, fallback: bool) -> Iterator[Link]:
        link = rdma_link(world, fallback=fallback)
        yield link
        link.close()


def _open() -> RdmaTransport:
    return RdmaTransport.open(AgentSettings(rdma_devices="rxe0"))


class TestTransport(PeerConformance):
    """As agents use it: what it tells peers as bytes, TCP behind."""

    @pytest.fixture
    def link(self, world: SlabWorld) -> Iterator[Link]:
        link = transport_link(world, _open)
        yield link
        link.close()


class TestAccess(AccessConformance):
    @pytest.fixture
    def pair(self, world: SlabWorld) -> Iterator[Pair]:
        pair = Pair(world, _open)
        yield pair
        pair.close()
