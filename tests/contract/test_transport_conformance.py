"""The transport conformance suite over everything that runs without an RDMA device."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from medes import native
from tests.support.certificates import Authority
from tests.support.page_links import Link, SlabWorld, local_link, tcp_link
from tests.support.transport_conformance import PeerConformance, TransportConformance


@pytest.fixture
def world(tmp_path: Path) -> SlabWorld:
    return SlabWorld(tmp_path)


class TestLocal(TransportConformance):
    @pytest.fixture
    def link(self, world: SlabWorld) -> Iterator[Link]:
        link = local_link(world)
        yield link
        link.close()


class TestTcp(PeerConformance):
    @pytest.fixture
    def link(self, world: SlabWorld) -> Iterator[Link]:
        link = tcp_link(world)
        yield link
        link.close()


class TestTcpWithStreams(PeerConformance):
    @pytest.fixture
    def link(self, world: SlabWorld) -> Iterator[Link]:
        link = tcp_link(world, streams=3)
        yield link
        link.close()


class TestTcpWithTls(PeerConformance):
    @pytest.fixture
    def link(self, world: SlabWorld, tmp_path: Path) -> Iterator[Link]:
        authority = Authority(tmp_path)
        link = tcp_link(world, tls=(authority.issue("server"), authority.issue("reader")), streams=2)
        yield link
        link.close()


class TestTcpWithFaults(PeerConformance):
    """Late batches and reads that overtake each other."""

    @pytest.fixture
    def link(self, world: SlabWorld) -> Iterator[Link]:
        link = tcp_link(world, wrap=lambda r: native.fault_reader(r, seed=3, delay_max_us=2000, reorder=True))
        yield link
        link.close()


class TestTcpWithFailuresAndRetry(PeerConformance):
    """One read in 50 fails; the retry decorator must hide all of it."""

    @pytest.fixture
    def link(self, world: SlabWorld) -> Iterator[Link]:
        link = tcp_link(
            world,
            wrap=lambda r: native.retry_reader(native.fault_reader(r, seed=5, fail=0.02), attempts=8),
        )
        yield link
        link.close()
