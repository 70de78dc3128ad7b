"""Connections come and go: bounds, eviction, reconnection, and what is counted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from medes import errors, native
from medes.transport.rdma.rdma_node import RdmaAnswer, RdmaNode
from tests.conformance.transport_faults import Encoded
from tests.support import rdma_peer
from tests.support.page_links import DOMAIN, LARGE, SMALL, SlabWorld, rdma_link, tcp_link

pytestmark = pytest.mark.rdma


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> SlabWorld:
    return SlabWorld(tmp_path_factory.mktemp("slabs"))


def connect(serving: native.RdmaContext, reader: native.RdmaReader) -> int:
    connection, endpoint = serving.accept(reader.offer(), DOMAIN, "reader")
    reader.connect(endpoint)
    for base_id in (SMALL, LARGE):
        found = serving.region(base_id, DOMAIN)
        if found is not None:
            reader.add_region(found)
    return connection


def serve(world: SlabWorld, **limits: int) -> native.RdmaContext:
    context = native.RdmaContext(**limits)
    for base_id in (SMALL, LARGE):
        context.add_slab(world.slabs[base_id], DOMAIN)
    return context


def test_devices_are_listed() -> None:
    found = native.rdma_devices()
    assert [d["name"] for d in found] == ["rxe0"]
    assert found[0]["active"] is True
    assert found[0]["gid"] == bytes(10) + b"\xff\xff" + bytes([10, 9, 0, 1])


def test_a_device_asked_for_by_name_must_exist() -> None:
    with pytest.raises(errors.UnsupportedError):
        native.RdmaContext("mlx5_7")
    with pytest.raises(errors.UnsupportedError):
        native.RdmaContext("rxe0", 9)


def test_server_bounds_its_queue_pairs(world: SlabWorld) -> None:
    serving, reading = serve(world, server_connections_max=2), native.RdmaContext()
    readers = [reading.reader() for _ in range(3)]
    first = connect(serving, readers[0])
    connect(serving, readers[1])
    with pytest.raises(errors.BusyError):
        connect(serving, readers[2])
    assert serving.disconnect(first)
    assert not serving.disconnect(first)
    connect(serving, readers[2])
    assert readers[2].read(SMALL, 0, 4096, 60.0) == world.expect(SMALL, 0, 4096)
    stats = serving.stats()
    assert (stats["server_connections_open"], stats["refused"]) == (2, 1)
    assert serving.disconnect_peer("reader") == 2
    assert serving.stats()["server_connections_open"] == 0
    for context in (reading, serving):
        context.close()


def test_client_evicts_the_reader_that_was_idle_longest(world: SlabWorld) -> None:
    serving, reading = serve(world), native.RdmaContext(client_connections_max=2)
    readers = [reading.reader() for _ in range(3)]
    connect(serving, readers[0])
    connect(serving, readers[1])
    assert readers[0].read(SMALL, 0, 16, 60.0) == world.expect(SMALL, 0, 16)
    connect(serving, readers[2])
    assert [r.connected for r in readers] == [True, False, True]
    assert reading.stats()["client_evictions"] == 1
    with pytest.raises(errors.PeerUnreachableError):
        readers[1].read(SMALL, 0, 16)
    assert readers[1].stats()["breaks"] == 0, "an eviction is no failure"
    assert reading.take_wanted(5.0) == [readers[1].id]
    connect(serving, readers[1])
    assert readers[1].read(SMALL, 0, 16, 60.0) == world.expect(SMALL, 0, 16)
    assert readers[1].stats()["reconnects"] == 1
    assert reading.evict_idle(3600.0) == 0
    assert reading.evict_idle(0.0) == 2
    assert reading.stats()["client_connections_open"] == 0
    for context in (reading, serving):
        context.close()


def test_counters_prove_that_rdma_carried_it_all(world: SlabWorld) -> None:
    link = rdma_link(world, fallback=True)
    answers = link.reader.read_batch([(LARGE, i * 4096, 4096) for i in range(256)], 60.0)
    assert {code for code, _ in answers} == {"ok"}
    stats = link.reader.stats()
    assert (stats["bytes"], stats["fallbacks"], stats["reads"]) == (256 * 4096, 0, 256)
    link.close()


def test_lost_connection_falls_back_to_tcp_and_is_counted(world: SlabWorld) -> None:
    link = rdma_link(world, fallback=True)
    assert link.reader.read(SMALL, 0, 4096, 60.0) == world.expect(SMALL, 0, 4096)
    link.break_rdma()
    answers = link.reader.read_batch([(SMALL, 0, 4096), (LARGE, 4096, 8192)], 60.0)
    assert answers == [("ok", world.expect(SMALL, 0, 4096)), ("ok", world.expect(LARGE, 4096, 8192))]
    stats = link.reader.stats()
    assert (stats["fallbacks"], stats["breaks"]) == (2, 1)
    assert link.reader.bytes_by_transport == {"rdma": 4096, "tcp": 4096 + 8192}
    assert link.reader.transport == "tcp"
    link.close()


def test_pages_of_a_base_are_booked_to_what_carried_them(world: SlabWorld) -> None:
    link = rdma_link(world, fallback=True)
    work = Encoded(world)
    encoded, bases = work.encode(), work.remote(link.reader)
    for page in range(work.PAGES):
        if page == 100:
            assert set(bases.remote_pages_by_transport) == {"rdma"}
            link.break_rdma()
        first = page * native.PAGE_BYTES
        assert encoded.decode(page, bases) == bytes(work.data[first : first + native.PAGE_BYTES])
    pages = bases.remote_pages_by_transport
    assert set(pages) == {"rdma", "tcp"} and pages["rdma"] >= 100 and pages["tcp"] >= 190
    assert sum(pages.values()) == bases.remote_pages_read
    assert link.reader.bytes_by_transport == {k: v * native.PAGE_BYTES for k, v in pages.items()}
    link.close()


async def test_fall_back_and_a_broken_connection_are_said_in_the_log(
    world: SlabWorld, caplog: pytest.LogCaptureFixture
) -> None:
    holder, reading = RdmaNode([native.RdmaContext()]), RdmaNode([native.RdmaContext()])
    tcp = tcp_link(world)
    assert holder.publish(world.slabs[LARGE], DOMAIN)

    async def exchange(endpoint: native.RdmaEndpoint) -> RdmaAnswer:
        return holder.accept("n1", DOMAIN, endpoint, 0.0)

    reader = await reading.attach("n0", DOMAIN, tcp.reader, exchange)
    assert reader.read(LARGE, 0, 4096, 60.0) == world.expect(LARGE, 0, 4096)
    with caplog.at_level("WARNING", "medes.transport.rdma.link_watch"):
        reading._look_at_links(0, 0.0)
        assert caplog.messages == []
        holder.release("n1", DOMAIN)
        assert reader.read(LARGE, 0, 4096, 60.0) == world.expect(LARGE, 0, 4096)
        reading._look_at_links(0, 1.0)
        reading._look_at_links(0, 2.0)
    broke, fell_back = caplog.messages
    assert "n0 (tenant-a) broke" in broke and "1 reads from n0 (tenant-a) went over TCP" in fell_back
    reading.close()
    holder.close()
    tcp.close()


def test_regions_that_are_not_kept_are_unknown_and_come_back(world: SlabWorld) -> None:
    serving, reading = serve(world), native.RdmaContext()
    reader = reading.reader()
    connect(serving, reader)
    assert reader.keep_regions([SMALL, 12345]) == 1
    assert reader.keep_regions([SMALL]) == 0
    answers = reader.read_batch([(LARGE, 0, 16), (SMALL, 0, 16)], 60.0)
    assert answers == [("not_found", b""), ("ok", world.expect(SMALL, 0, 16))]
    assert reader.connected, "nothing was sent that the peer could refuse"
    region = serving.region(LARGE, DOMAIN)
    assert region is not None
    reader.add_region(region)
    assert reader.read(LARGE, 0, 16, 60.0) == world.expect(LARGE, 0, 16)
    for context in (reading, serving):
        context.close()


async def test_a_new_connection_forgets_bases_that_the_peer_no_longer_has(world: SlabWorld) -> None:
    holder, reading = RdmaNode([native.RdmaContext()]), RdmaNode([native.RdmaContext()])
    tcp = tcp_link(world)
    for base_id in (SMALL, LARGE):
        assert holder.publish(world.slabs[base_id], DOMAIN)

    async def exchange(endpoint: native.RdmaEndpoint) -> RdmaAnswer:
        return holder.accept("n1", DOMAIN, endpoint, 0.0)

    await reading.attach("n0", DOMAIN, tcp.reader, exchange)
    (link,) = reading._links.values()
    holder.retire(SMALL)
    await reading._connect(link)
    assert link.reader.keep_regions([]) == 1
    reading.close()
    holder.close()
    tcp.close()


def test_lost_connection_is_replaced_when_the_agent_exchanges_endpoints(world: SlabWorld) -> None:
    link = rdma_link(world, fallback=True)
    assert link.reader.read(SMALL, 0, 16, 60.0) == world.expect(SMALL, 0, 16)
    link.disconnect()
    assert link.reader.read(SMALL, 0, 16, 60.0) == world.expect(SMALL, 0, 16)
    before = link.reader.stats()["fallbacks"]
    link.reconnect()
    assert link.reader.read(LARGE, 0, 4096, 60.0) == world.expect(LARGE, 0, 4096)
    stats = link.reader.stats()
    assert stats["fallbacks"] == before
    assert stats["reconnects"] == 1
    link.close()


def test_a_queue_pair_is_made_anew_between_reads(world: SlabWorld) -> None:
    link = rdma_link(world, fallback=True)
    assert link.reader.read(LARGE, 0, 4096, 60.0) == world.expect(LARGE, 0, 4096)
    before = link.reader.stats()
    assert link.reader.reconnect()
    link.reconnect()  # what the agent does when it is asked for
    assert link.reader.read(LARGE, 0, 4096, 60.0) == world.expect(LARGE, 0, 4096)
    after = link.reader.stats()
    assert after["fallbacks"] == before["fallbacks"] and after["breaks"] == before["breaks"]
    assert link.reader.bytes_by_transport == {"rdma": 8192}
    link.close()


def test_connection_of_a_killed_process_is_reaped(world: SlabWorld) -> None:
    node = RdmaNode([native.RdmaContext()])
    assert node.publish(world.slabs[SMALL], DOMAIN)
    command = [sys.executable, "-m", "tests.support.rdma_peer"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as peer:
        assert peer.stdin is not None and peer.stdout is not None
        answer = node.accept("n1", DOMAIN, rdma_peer.from_json(peer.stdout.readline()), now_s=0.0)
        assert answer.endpoint is not None
        peer.stdin.write(rdma_peer.to_json(answer.endpoint) + "\n")
        peer.stdin.flush()
        assert peer.stdout.readline() == "connected\n"
        peer.kill()
    assert node.stats()["server_connections_open"] == 1, "nothing tells the holder"
    assert node.reap(silent_since_s=100.0, now_s=200.0) == 1
    assert node.stats()["server_connections_open"] == 0
    node.close()


def test_a_closed_slab_is_unknown_to_its_reader(world: SlabWorld, tmp_path: Path) -> None:
    serving, reading = serve(world), native.RdmaContext()
    reader = reading.reader()
    connect(serving, reader)
    serving.remove_slab(SMALL)
    assert reader.read_batch([(SMALL, 0, 4096)], 60.0) == [("not_found", b"")]
    assert not reader.connected, "a remote access error ends the queue pair"
    connect(serving, reader)
    assert reader.read(LARGE, 0, 4096, 60.0) == world.expect(LARGE, 0, 4096)
    for context in (reading, serving):
        context.close()
