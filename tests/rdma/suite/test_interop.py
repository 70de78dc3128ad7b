"""Native transport and the pyverbs reference peer, in both directions."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from medes import native
from medes.transport.rdma.reference_peer import ReferencePeer
from tests.support.page_links import DOMAIN, FOREIGN, LARGE, PAGES, SMALL, SlabWorld

pytestmark = pytest.mark.rdma
REMOTE_ACCESS_ERROR = 10


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> SlabWorld:
    return SlabWorld(tmp_path_factory.mktemp("slabs"))


@pytest.fixture
def serving(world: SlabWorld) -> Iterator[native.RdmaContext]:
    context = native.RdmaContext()
    for base_id, slab in world.slabs.items():
        context.add_slab(slab, world.domain(base_id))
    yield context
    context.close()


def region(context: native.RdmaContext, base_id: int, domain: str = DOMAIN) -> native.RdmaRegion:
    found = context.region(base_id, domain)
    assert found is not None
    return found


def test_pyverbs_reads_from_the_native_server(serving: native.RdmaContext, world: SlabWorld) -> None:
    with ReferencePeer() as peer:
        _, endpoint = serving.accept(peer.endpoint(), DOMAIN, "pyverbs")
        peer.connect(endpoint)
        source = random.Random(2)
        reads = [(SMALL, 0, 4096), (LARGE, 16, 8192)]
        for _ in range(30):
            reads.append((LARGE, source.randrange(0, (PAGES[LARGE] - 1) * 4096, 16), 4096))
        done, data = peer.read([(region(serving, b), offset, length) for b, offset, length in reads])
        assert [c.status for c in done] == [0] * len(reads)
        assert data == [world.expect(*read) for read in reads]


def test_native_client_reads_from_pyverbs() -> None:
    data = random.Random(4).randbytes(64 * 4096)
    context = native.RdmaContext(buffer_bytes=4 << 20)
    with ReferencePeer() as peer:
        reader = context.reader()
        peer.connect(reader.offer())
        reader.connect(peer.endpoint())
        reader.add_region(peer.serve(77, data))
        answers = reader.read_batch(
            [(77, i * 4096, 4096) for i in range(0, 64, 3)] + [(77, 16, 100_000)], 60.0
        )
        assert [code for code, _ in answers] == ["ok"] * 23
        assert [d for _, d in answers[:-1]] == [data[i * 4096 : (i + 1) * 4096] for i in range(0, 64, 3)]
        assert answers[-1][1] == data[16 : 16 + 100_000]
        reader.close()
    context.close()


def test_a_bad_key_is_refused_by_the_device(serving: native.RdmaContext) -> None:
    with ReferencePeer() as peer:
        _, endpoint = serving.accept(peer.endpoint(), DOMAIN, "pyverbs")
        peer.connect(endpoint)
        good = region(serving, SMALL)
        bad = native.RdmaRegion(SMALL, good.address, good.length, good.remote_key ^ 0x55)
        done, data = peer.read([(bad, 0, 4096)])
        assert [c.status for c in done] == [REMOTE_ACCESS_ERROR]
        assert data == [bytes(4096)]


def test_the_right_key_of_another_domain_is_refused_by_the_device(serving: native.RdmaContext) -> None:
    assert serving.region(FOREIGN, DOMAIN) is None
    stolen = region(serving, FOREIGN, "tenant-b")
    with ReferencePeer() as peer:
        _, endpoint = serving.accept(peer.endpoint(), DOMAIN, "pyverbs")
        peer.connect(endpoint)
        done, data = peer.read([(stolen, 0, 4096)])
        assert [c.status for c in done] == [REMOTE_ACCESS_ERROR]
        assert data == [bytes(4096)]


def test_memory_past_a_slab_is_refused(serving: native.RdmaContext) -> None:
    with ReferencePeer() as peer:
        _, endpoint = serving.accept(peer.endpoint(), DOMAIN, "pyverbs")
        peer.connect(endpoint)
        slab = region(serving, SMALL)
        done, _ = peer.read([(slab, slab.length - 16, 32)])
        assert [c.status for c in done] == [REMOTE_ACCESS_ERROR]


def test_a_revoked_slab_is_refused_by_the_device(serving: native.RdmaContext, world: SlabWorld) -> None:
    with ReferencePeer() as peer:
        _, endpoint = serving.accept(peer.endpoint(), DOMAIN, "pyverbs")
        peer.connect(endpoint)
        slab = region(serving, SMALL)
        done, data = peer.read([(slab, 0, 4096)])
        assert (done[0].status, data[0]) == (0, world.expect(SMALL, 0, 4096))
        serving.remove_slab(SMALL)
        done, data = peer.read([(slab, 0, 4096)])
        assert (done[0].status, data[0]) == (REMOTE_ACCESS_ERROR, bytes(4096))
        assert serving.region(SMALL, DOMAIN) is None
