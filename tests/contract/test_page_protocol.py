"""The page server against clients that break the protocol, and the protocol's bytes against golden vectors."""

from __future__ import annotations

import hashlib
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from medes import errors, native
from medes.certs.authority import Pem
from medes.certs.parties import Party, Role
from tests.support.certificates import Authority, shown
from tests.support.cluster import wait_until
from tests.support.page_links import DOMAIN, SMALL, SlabWorld

HELLO_MAGIC = b"MEDPAG1\0"
CODES = native.error_codes()


def hello(token: bytes, magic: bytes = HELLO_MAGIC, version: int = 1, flags: int = 0) -> bytes:
    body = magic + struct.pack("<HHI", version, flags, 0) + token
    return body + struct.pack("<Q", native.checksum64(body))


def request(reads: list[tuple[int, int, int]], request_id: int = 1, count: int | None = None) -> bytes:
    head = b"MRQ1" + struct.pack("<HHQII", 1, 0, request_id, len(reads) if count is None else count, 0)
    table = b"".join(struct.pack("<QQII", *read, 0) for read in reads)
    parts = struct.pack("<QQ", native.checksum64(head), native.checksum64(table))
    return head + struct.pack("<Q", native.checksum64(parts)) + table


def receive(sock: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        part = sock.recv(length - len(data))
        if not part:
            break
        data += part
    return data


class Server:
    def __init__(
        self, world: SlabWorld, identity: native.TlsIdentity | None = None, peer: str = "test"
    ) -> None:
        self.world = world
        self.server = native.PageServer("127.0.0.1", identity=identity)
        world.publish(self.server)
        self.token = os.urandom(32)
        self.server.grant(self.token, DOMAIN, peer)
        host, port = self.server.address.rsplit(":", 1)
        self.target = (host, int(port))

    def connect(self, greeting: bytes | None = None) -> socket.socket:
        sock = socket.create_connection(self.target, timeout=10)
        sock.sendall(hello(self.token) if greeting is None else greeting)
        return sock

    def greeted(self) -> socket.socket:
        sock = self.connect()
        status, reads, batch_bytes, read_bytes = struct.unpack_from("<HIQQ", receive(sock, 40), 10)
        assert (CODES[status], reads, batch_bytes, read_bytes) == ("ok", 8192, 256 << 20, 8 << 20)
        return sock


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Server]:
    server = Server(SlabWorld(tmp_path))
    yield server
    server.server.close()


def error_code(reply: bytes) -> str:
    magic, kind, status = struct.unpack_from("<4sHH", reply)
    assert (magic, kind) == (b"MRP1", 3)
    return CODES[status]


def test_an_independent_client_reads_pages(served: Server) -> None:
    with served.greeted() as sock:
        sock.sendall(request([(SMALL, 4096, 8192), (SMALL, 16, 100), (12345, 0, 16)], request_id=77))
        head = receive(sock, 40)
        magic, kind, status, request_id, count, _, payload, _ = struct.unpack("<4sHHQIIQQ", head)
        assert (magic, kind, status, request_id, count, payload) == (b"MRP1", 2, 0, 77, 3, 8292)
        entries = [struct.unpack("<HHIQ", receive(sock, 16)) for _ in range(3)]
        assert [(CODES[e[0]], e[2]) for e in entries] == [("ok", 8192), ("ok", 100), ("not_found", 0)]
        pages, piece = receive(sock, 8192), receive(sock, 100)
        assert pages == served.world.expect(SMALL, 4096, 8192)
        assert piece == served.world.expect(SMALL, 16, 100)
        sums = struct.pack("<QQ", native.checksum64(pages[:4096]), native.checksum64(pages[4096:]))
        assert [e[3] for e in entries] == [native.checksum64(sums), native.checksum64(piece), 0]


def test_the_bytes_of_the_protocol_are_frozen() -> None:
    frames = hello(bytes(range(32))) + request([(1, 16, 4096), (2, 0, 8 << 20)], request_id=9)
    assert hashlib.sha256(frames).hexdigest() == GOLDEN_FRAMES


GOLDEN_FRAMES = "fd8a19d26f532570e2837eb1b5f2eeeae6b5afb9c7279da4d88cf7eb4ce8cbf1"


@pytest.mark.parametrize(
    ("greeting", "expected"),
    [
        (hello(b"x" * 32), "unauthenticated"),
        (hello(bytes(32)), "unauthenticated"),
        (hello(bytes(32), magic=b"GET / HT"), "corrupt"),
        (hello(bytes(32), version=2), "unsupported"),
        (hello(bytes(32), flags=1), "corrupt"),
        (hello(bytes(32))[:-1] + b"\xff", "corrupt"),
    ],
)
def test_bad_greetings_are_answered_and_closed(served: Server, greeting: bytes, expected: str) -> None:
    with served.connect(greeting) as sock:
        assert CODES[struct.unpack_from("<H", receive(sock, 40), 10)[0]] == expected
        assert sock.recv(1) == b""


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (b"\0" * 32, "corrupt"),
        (b"JUNK" + request([(SMALL, 0, 16)])[4:], "corrupt"),
        (request([(SMALL, 0, 16)])[:-1] + b"\x01", "corrupt"),
        (request([(SMALL, 0, 16)], count=0), "limit_exceeded"),
        (request([(SMALL, 0, 16)], count=8193), "limit_exceeded"),
        (request([(SMALL, 0, 16)], count=0xFFFFFFFF), "limit_exceeded"),
        (request([(SMALL, 0, 0)]), "limit_exceeded"),
        (request([(SMALL, 0, (8 << 20) + 1)]), "limit_exceeded"),
        (request([(SMALL, 0, 0xFFFFFFFF)]), "limit_exceeded"),
        (request([(SMALL, 0, 8 << 20)] * 33), "limit_exceeded"),
    ],
)
def test_bad_frames_are_answered_and_closed(served: Server, frame: bytes, expected: str) -> None:
    with served.greeted() as sock:
        sock.sendall(frame)
        assert error_code(receive(sock, 40)) == expected
        assert sock.recv(1) == b""
    assert served.server.stats()["malformed"] == 1
    with served.greeted() as sock:  # the server lives on
        sock.sendall(request([(SMALL, 0, 16)]))
        assert receive(sock, 40 + 16 + 16)[-16:] == served.world.expect(SMALL, 0, 16)


def test_half_a_frame_and_silence_costs_nothing(served: Server) -> None:
    sock = served.greeted()
    sock.sendall(request([(SMALL, 0, 16)])[:40])
    sock.close()
    with served.greeted() as other:
        other.sendall(request([(SMALL, 0, 16)]))
        assert len(receive(other, 72)) == 72


def test_a_reader_that_does_not_read_is_not_served_on(served: Server) -> None:
    with served.greeted() as sock:
        for i in range(200):
            sock.sendall(request([(SMALL, 0, 24 * 4096)] * 20, request_id=i + 1))
        answered = served.server.stats()["batches"]
        assert answered < 200, "replies nobody reads must not be queued"


def test_revoked_token_ends_its_connections(served: Server) -> None:
    reader = native.tcp_reader(served.server.address, served.token, attempts=1)
    assert reader.read(SMALL, 0, 16) == served.world.expect(SMALL, 0, 16)
    served.server.revoke(served.token)
    outcomes = {reader.read_batch([(SMALL, 0, 16)])[0][0] for _ in range(3)}
    assert outcomes <= {"unauthenticated", "peer_unreachable"}
    fresh = os.urandom(32)
    served.server.grant(fresh, DOMAIN, "test")
    reader.readdress(served.server.address, fresh)
    assert reader.read(SMALL, 0, 16) == served.world.expect(SMALL, 0, 16)
    reader.close()


def test_reader_finds_a_peer_that_was_started_anew(served: Server) -> None:
    reader = native.tcp_reader(served.server.address, served.token)
    reader.read(SMALL, 0, 16)
    served.server.close()
    with pytest.raises(errors.PeerUnreachableError):
        reader.read(SMALL, 0, 16, 0.3)
    again = native.PageServer("127.0.0.1")
    served.world.publish(again)
    token = os.urandom(32)
    again.grant(token, DOMAIN, "test")
    reader.readdress(again.address, token)
    assert reader.read(SMALL, 0, 16) == served.world.expect(SMALL, 0, 16)
    assert reader.stats()["reconnects"] == 1
    reader.close()
    again.close()


def test_unreachable_address_and_wrong_token(served: Server) -> None:
    with pytest.raises(errors.UnauthenticatedError):
        native.tcp_reader(served.server.address, os.urandom(32))
    with pytest.raises(errors.InvalidArgumentError):
        native.tcp_reader(served.server.address, b"short")
    with pytest.raises(errors.InvalidArgumentError):
        native.tcp_reader("no-port", served.token)
    served.server.close()
    with pytest.raises(errors.PeerUnreachableError):
        native.tcp_reader(served.server.address, served.token)
    later = native.tcp_reader(served.server.address, served.token, connect_now=False, attempts=1)
    assert later.read_batch([(SMALL, 0, 16)]) == [("peer_unreachable", b"")]


def test_tls_refuses_strangers(tmp_path: Path) -> None:
    ours, theirs = Authority(tmp_path), Authority(tmp_path)
    server = native.PageServer("127.0.0.1", identity=shown(ours.pem("holder")))
    token = os.urandom(32)
    server.grant(token, DOMAIN, "reader")
    name = Party(Role.NODE, "holder").server_name

    def read(pem: Pem, server_name: str = name) -> None:
        native.tcp_reader(server.address, token, identity=shown(pem), server_name=server_name).close()

    own, stranger = ours.pem("reader"), theirs.pem("reader")
    read(own)
    for refused in (
        replace(stranger, ca=own.ca),  # a certificate of another CA
        stranger,  # and a server of another CA, seen from there
        ours.pem("reader", days=-0.01),  # expired
    ):
        with pytest.raises(errors.UnauthenticatedError):
            read(refused)
    with pytest.raises(errors.UnauthenticatedError):  # the right CA, but not who was to be reached
        read(own, Party(Role.NODE, "another").server_name)
    with pytest.raises(errors.MedesError):  # no TLS at all
        native.tcp_reader(server.address, token)
    with pytest.raises(errors.InvalidArgumentError):
        native.TlsIdentity(own.certificate, stranger.private_key, own.ca)
    with pytest.raises(errors.InvalidArgumentError):
        native.TlsIdentity(own.certificate, own.private_key, b"")
    # Those included that refused the server, which hears of it when they have gone already.
    wait_until(lambda: server.stats()["refused_certificates"] >= 5, "all are counted")
    assert server.stats()["refused_certificates"] == 5
    server.close()


def test_a_token_is_worth_nothing_to_others(tmp_path: Path) -> None:
    """Overheard, or handed on: another node of the cluster, and a party that is no node, are refused with it."""
    ours = Authority(tmp_path)
    server = native.PageServer("127.0.0.1", identity=shown(ours.pem("holder")))
    token = os.urandom(32)
    server.grant(token, DOMAIN, "reader")
    name = Party(Role.NODE, "holder").server_name
    for pem in (ours.pem("other"), ours.pem("reader", Role.OBSERVER), ours.pem("reader", Role.CONTROLLER)):
        with pytest.raises(errors.UnauthenticatedError, match="token"):
            native.tcp_reader(server.address, token, identity=shown(pem), server_name=name)
    assert server.stats()["refused_nodes"] == 3
    with pytest.raises(errors.UnauthenticatedError, match="token"):
        native.tcp_reader(
            server.address, os.urandom(32), identity=shown(ours.pem("reader")), server_name=name
        )
    assert server.stats()["refused_tokens"] == 1 and server.stats()["refused"] == 4
    server.close()


def test_certificates_are_exchanged_under_open_connections(tmp_path: Path) -> None:
    """A new CA on both sides: what is open goes on, what is opened later uses the new one."""
    old, new = Authority(tmp_path), Authority(tmp_path)
    holder, reading = shown(old.pem("holder")), shown(old.pem("reader"))
    served = Server(SlabWorld(tmp_path), holder, "reader")
    name = Party(Role.NODE, "holder").server_name

    def reader() -> native.PageReader:
        return native.tcp_reader(
            served.server.address, served.token, attempts=1, identity=reading, server_name=name
        )

    early = reader()
    for identity, party in ((holder, "holder"), (reading, "reader")):
        pem = new.pem(party)
        identity.replace(pem.certificate, pem.private_key, pem.ca)
    for each in (early, reader()):
        assert [status for status, _ in each.read_batch([(SMALL, 0, 16)])] == ["ok"]
        each.close()
    stranger = shown(old.pem("reader"))
    with pytest.raises(errors.UnauthenticatedError):
        native.tcp_reader(served.server.address, served.token, identity=stranger, server_name=name)
    served.server.close()


def test_server_address_in_use_is_an_error(served: Server) -> None:
    with pytest.raises(errors.MedesError):
        native.PageServer(*served.target)
