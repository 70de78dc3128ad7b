"""Two RDMA ports on one node: connections on both, and a port that leads nowhere is passed over."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from medes import errors, native
from medes.config import AgentSettings
from medes.transport.choice import open_transports
from medes.transport.rdma.rdma_node import RdmaAnswer, RdmaNode, open_rdma
from tests.support.page_links import DOMAIN, LARGE, SMALL, SlabWorld, tcp_link

pytestmark = pytest.mark.rdma


@pytest.fixture(scope="module", autouse=True)
def second_port() -> Iterator[None]:
    def ip(*words: str) -> None:
        subprocess.run(words, check=True)

    ip("ip", "link", "add", "dummy1", "type", "dummy")
    ip("ip", "link", "set", "dummy1", "mtu", "9000", "up")
    ip("ip", "addr", "add", "10.9.1.1/24", "dev", "dummy1")
    ip("rdma", "link", "add", "rxe1", "type", "rxe", "netdev", "dummy1")
    yield
    ip("rdma", "link", "delete", "rxe1")
    ip("ip", "link", "delete", "dummy1")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> SlabWorld:
    return SlabWorld(tmp_path_factory.mktemp("slabs"))


@pytest.fixture(scope="module")
def tcp(world: SlabWorld) -> Iterator[native.PageReader]:
    link = tcp_link(world)
    yield link.reader
    link.close()


def serve(world: SlabWorld, devices: str) -> RdmaNode:
    node = open_rdma(devices)
    for base_id in (SMALL, LARGE):
        assert node.publish(world.slabs[base_id], DOMAIN)
    return node


async def attach(reading: RdmaNode, holder: RdmaNode, name: str, tcp: native.PageReader) -> native.PageReader:
    async def exchange(endpoint: native.RdmaEndpoint) -> RdmaAnswer:
        return holder.accept(name, DOMAIN, endpoint, 0.0)

    return await reading.attach(name, DOMAIN, tcp, exchange)


def check(reader: native.PageReader, world: SlabWorld) -> None:
    for base_id in (SMALL, LARGE):
        assert reader.read(base_id, 4096, 8192, 60.0) == world.expect(base_id, 4096, 8192)
    assert (reader.transport, reader.stats()["fallbacks"]) == ("rdma", 0)


def test_all_active_ports_are_used_unless_named() -> None:
    found = {(d["name"], d["gid"]) for d in native.rdma_devices()}
    assert {name for name, _ in found} == {"rxe0", "rxe1"}
    for devices, ports in (
        ("", ["rxe0:1", "rxe1:1"]),
        ("rxe1", ["rxe1:1"]),
        ("rxe1:1,rxe0", ["rxe1:1", "rxe0:1"]),
    ):
        node = open_rdma(devices)
        assert sorted(node.ports) == sorted(ports)
        node.close()
    with pytest.raises(errors.UnsupportedError):
        open_rdma("rxe7")
    by_itself = open_transports(AgentSettings(transport="auto", rdma_devices="rxe7"))
    assert by_itself.running == () and "rxe7" in str(by_itself)
    with pytest.raises(errors.UnsupportedError):
        open_transports(AgentSettings(transport="rdma", rdma_devices="rxe7"))
    unnamed = open_transports(AgentSettings())
    assert unnamed.running == () and "does not encrypt" in str(unnamed)
    named = open_transports(AgentSettings(rdma_devices="rxe1"))
    assert [t.where for t in named.running] == ["rxe1:1"]
    named.running[0].close()


async def test_connections_take_turns_over_both_ports(world: SlabWorld, tcp: native.PageReader) -> None:
    holder, reading = serve(world, ""), serve(world, "rxe0,rxe1")
    readers = [await attach(reading, holder, f"n{i}", tcp) for i in range(4)]
    for reader in readers:
        check(reader, world)
    per_port = [rail.stats()["server_connections_open"] for rail in holder._rails]
    assert per_port == [2, 2]
    reading.close()
    holder.close()


async def test_a_port_that_does_not_reach_the_peer_is_passed_over(
    world: SlabWorld, tcp: native.PageReader
) -> None:
    """Soft-RoCE carries nothing from one device of a host to another, like two networks that are not joined."""
    holder, reading = serve(world, "rxe0"), serve(world, "rxe0,rxe1")
    for name in ("n0", "n1"):  # one of them begins with rxe1
        check(await attach(reading, holder, name, tcp), world)
    assert [rail.stats()["client_connections_open"] for rail in reading._rails] == [2, 0]
    reading.close()
    holder.close()


async def test_a_slab_retired_is_gone_on_every_port(world: SlabWorld, tcp: native.PageReader) -> None:
    holder, reading = serve(world, ""), serve(world, "rxe0,rxe1")
    readers = [await attach(reading, holder, f"n{i}", tcp) for i in range(2)]
    holder.retire(SMALL)
    assert [rail.stats()["slabs"] for rail in holder._rails] == [1, 1]
    for reader in readers:
        assert reader.read(LARGE, 0, 4096, 60.0) == world.expect(LARGE, 0, 4096)
    reading.close()
    holder.close()
