"""Links to a served set of slabs, one a transport, for the conformance suite and for tests of single transports."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from medes import native
from medes.certs.parties import node_server_name
from tests.support.certificates import Authority, shown

DOMAIN = "tenant-a"
SMALL, LARGE, FOREIGN, UNKNOWN = 101, 102, 201, 999
PAGES = {SMALL: 24, LARGE: 2560, FOREIGN: 8}


@dataclass
class SlabWorld:
    """Slabs with known bytes: SMALL and LARGE in DOMAIN, FOREIGN in another."""

    folder: Path
    data: dict[int, bytes] = field(default_factory=dict)
    slabs: dict[int, native.Slab] = field(default_factory=dict)

    def __post_init__(self) -> None:
        source = random.Random(7)
        for base_id, pages in PAGES.items():
            self.data[base_id] = source.randbytes(pages * native.PAGE_BYTES)
            image = native.MemoryImage.from_buffer(self.data[base_id])
            path = str(self.folder / f"{base_id}.slab")
            # As agents make them: behind the pages lies what is to be known of them.
            self.slabs[base_id] = native.Slab.create(path, base_id, image, meta=b'{"whose": "a test"}')

    def domain(self, base_id: int) -> str:
        return "tenant-b" if base_id == FOREIGN else DOMAIN

    def publish(self, server: native.PageServer) -> None:
        for base_id, slab in self.slabs.items():
            server.add_slab(slab, self.domain(base_id))

    def expect(self, base_id: int, offset: int, length: int) -> bytes:
        return self.data[base_id][offset : offset + length]


@dataclass
class Link:
    """A reader and what the test may do to the other side."""

    reader: native.PageReader
    world: SlabWorld
    transport: str
    remove_slab: Callable[[int], None]
    kill_peer: Callable[[], None]
    close: Callable[[], None]
    break_rdma: Callable[[], None] = lambda: None  # the peer's RDMA side is gone, its TCP side not
    disconnect: Callable[[], None] = lambda: None  # the peer ends the queue pair
    reconnect: Callable[[], None] = lambda: None
    server: native.PageServer | None = None  # where it is in this process


def local_link(world: SlabWorld) -> Link:
    reader = native.local_reader([s for i, s in world.slabs.items() if world.domain(i) == DOMAIN])

    def unsupported(*_: object) -> None:
        raise NotImplementedError

    return Link(reader, world, "local", unsupported, unsupported, reader.close)


def tcp_link(
    world: SlabWorld,
    *,
    tls: Authority | None = None,
    streams: int = 1,
    attempts: int = 1,
    wrap: Callable[[native.PageReader], native.PageReader] = lambda reader: reader,
) -> Link:
    """Server and reader in this process; `tls` signs the certificates of both."""
    served_as, reading_as = (shown(tls.pem("server")), shown(tls.pem("reader"))) if tls else (None, None)
    server = native.PageServer("127.0.0.1", 0, identity=served_as)
    world.publish(server)
    token = os.urandom(32)
    server.grant(token, DOMAIN, "reader")
    reader = wrap(
        native.tcp_reader(
            server.address,
            token,
            streams=streams,
            attempts=attempts,
            identity=reading_as,
            server_name=node_server_name("server") if tls else "",
        )
    )

    def close() -> None:
        reader.close()
        server.close()

    return Link(
        reader, world, "tcp+tls" if tls else "tcp", server.remove_slab, server.close, close, server=server
    )


def rdma_link(
    world: SlabWorld,
    *,
    fallback: bool,
    wrap: Callable[[native.PageReader], native.PageReader] = lambda reader: reader,
) -> Link:
    """Both sides on one device. With `fallback`, lost connections are replaced and TCP takes what RDMA cannot."""
    serving = native.RdmaContext()
    reading = native.RdmaContext(buffer_bytes=8 << 20)
    for base_id, slab in world.slabs.items():
        serving.add_slab(slab, world.domain(base_id))
    rdma = reading.reader()

    def exchange() -> None:
        _, endpoint = serving.accept(rdma.offer(), DOMAIN, "reader")
        rdma.connect(endpoint)

    def disconnect() -> None:
        serving.disconnect_peer("reader")

    exchange()
    for base_id in world.slabs:
        region = serving.region(base_id, DOMAIN)
        if region is not None:
            rdma.add_region(region)
    if not fallback:

        def close_both() -> None:
            rdma.close()
            reading.close()
            serving.close()

        return Link(wrap(rdma), world, "rdma", serving.remove_slab, serving.close, close_both)

    tcp = tcp_link(world)
    reader = wrap(native.fallback_reader(rdma, tcp.reader))

    def remove_slab(base_id: int) -> None:
        serving.remove_slab(base_id)
        tcp.remove_slab(base_id)

    def kill_peer() -> None:
        serving.close()
        tcp.kill_peer()

    def close() -> None:
        reader.close()
        reading.close()
        serving.close()
        tcp.close()

    return Link(reader, world, "rdma", remove_slab, kill_peer, close, serving.close, disconnect, exchange)
