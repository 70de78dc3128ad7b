"""The transport conformance suite over everything that runs without an RDMA device, in every mode of the fault
decorator; tests/rdma/suite does the same over rdma."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from medes import errors, native
from medes.transport.transport import Transport
from tests.conformance.transport_access import AccessConformance
from tests.conformance.transport_cases import TransportCase, cases
from tests.conformance.transport_faults import TRANSPARENT, FaultConformance, Wrap, slabs
from tests.conformance.transports import PeerConformance, TransportConformance
from tests.support.certificates import Authority
from tests.support.page_links import DOMAIN, LARGE, Link, SlabWorld, local_link, tcp_link
from tests.support.transport_pair import Pair, transport_link


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> SlabWorld:
    return slabs(tmp_path_factory)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


def _tls(world: SlabWorld, authority: Authority, wrap: Wrap) -> Link:
    return tcp_link(world, tls=authority, streams=2, wrap=wrap)


Open = Callable[[SlabWorld, Authority, Wrap], Link]
PEERS: dict[str, Open] = {
    "tcp": lambda world, _, wrap: tcp_link(world, wrap=wrap),
    "tcp in 3 streams": lambda world, _, wrap: tcp_link(world, streams=3, wrap=wrap),
    "tcp+tls": _tls,
}


@pytest.mark.parametrize("mode", TRANSPARENT)
class TestLocal(TransportConformance):
    @pytest.fixture
    def link(self, world: SlabWorld, mode: str) -> Iterator[Link]:
        link = local_link(world)
        link.reader = TRANSPARENT[mode](link.reader)
        yield link
        link.reader.close()


@pytest.mark.parametrize("mode", TRANSPARENT)
@pytest.mark.parametrize("way", PEERS)
class TestTcp(PeerConformance):
    @pytest.fixture
    def link(self, world: SlabWorld, authority: Authority, way: str, mode: str) -> Iterator[Link]:
        link = PEERS[way](world, authority, TRANSPARENT[mode])
        yield link
        link.close()


@pytest.mark.parametrize("way", ["local", *PEERS])
class TestFaults(FaultConformance):
    @pytest.fixture
    def link(self, world: SlabWorld, authority: Authority, way: str) -> Iterator[Link]:
        link = local_link(world) if way == "local" else PEERS[way](world, authority, lambda reader: reader)
        yield link
        link.close()


class Proxy:
    """Before a page server: flips one bit of what the server sends in the first `damages` connections, and hands it on
    in pieces of `piece` bytes."""

    AT_BYTE = 64 * 1024  # behind greeting and reply head: in a page

    def __init__(self, address: str, *, damages: int = 0, piece: int = 65536) -> None:
        host, _, port = address.rpartition(":")
        self._target = (host, int(port))
        self._damages, self._piece = damages, piece
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            damages, self._damages = self._damages > 0, self._damages - 1
            threading.Thread(target=self._pump, args=(client, server, -1), daemon=True).start()
            at = self.AT_BYTE if damages else -1
            threading.Thread(target=self._pump, args=(server, client, at), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, damage_at: int) -> None:
        seen = 0
        try:
            while data := source.recv(self._piece):
                if seen <= damage_at < seen + len(data):
                    changed = bytearray(data)
                    changed[damage_at - seen] ^= 0x10
                    data = bytes(changed)
                seen += len(data)
                target.sendall(data)
        except OSError:
            pass
        for end in (source, target):
            end.close()

    def close(self) -> None:
        self._listener.close()


@pytest.mark.parametrize("pages_a_read", [1, 32])
def test_damage_on_the_wire_is_found_by_the_digest_and_healed_by_a_retry(
    world: SlabWorld, pages_a_read: int
) -> None:
    server = native.PageServer("127.0.0.1", 0)
    world.publish(server)
    token = os.urandom(32)
    server.grant(token, DOMAIN, "reader")
    length = pages_a_read * native.PAGE_BYTES
    reads = [(LARGE, i * length, length) for i in range(64 // pages_a_read)]
    for attempts, expected in ((1, ["corrupt"]), (4, [])):
        proxy = Proxy(server.address, damages=1)
        reader = native.tcp_reader(proxy.address, token, attempts=attempts)
        answers = reader.read_batch(reads, 30.0)
        assert [code for code, _ in answers if code != "ok"] == expected
        for read, (code, data) in zip(reads, answers, strict=True):
            assert code != "ok" or data == world.expect(*read)
        assert (reader.stats()["retries"] > 0) == (attempts > 1)
        reader.close()
        proxy.close()
    unchecked = native.tcp_reader(server.address, token, attempts=1, check_digests=False)
    assert unchecked.read(*reads[0]) == world.expect(*reads[0])
    unchecked.close()
    server.close()


def test_replies_that_come_in_small_pieces_are_taken_to_their_last_byte(world: SlabWorld) -> None:
    """A waiter lets the kernel gather 64 KiB before it is woken, but must not wait for more than is still to come."""
    link = tcp_link(world)
    assert link.server is not None
    token = os.urandom(32)
    link.server.grant(token, DOMAIN, "reader")
    proxy = Proxy(link.server.address, piece=1500)
    reader = native.tcp_reader(proxy.address, token, attempts=1)
    for length in (128 * 1024 - 4096, 128 * 1024, 192 * 1024, 300 * 1024 + 16, 1 << 20):
        begun_s = time.monotonic()
        assert reader.read(LARGE, 4096, length) == world.expect(LARGE, 4096, length)
        assert time.monotonic() - begun_s < 5.0, "it sat out the stall timeout"
    reader.close()
    proxy.close()
    link.close()


def test_streams_are_opened_for_what_fills_them_only(world: SlabWorld) -> None:
    """A fault costs no second connection and no thread; a batch of half a MiB is spread."""
    link = tcp_link(world, streams=3)
    for page in range(8):
        assert link.reader.read(LARGE, page * 4096, 4096) == world.expect(LARGE, page * 4096, 4096)
    server = link.server
    assert server is not None and server.stats()["connections_total"] == 1
    reads = [(LARGE, page * 4096, 4096) for page in range(512)]
    assert [d for _, d in link.reader.read_batch(reads, 30.0)] == [world.expect(*read) for read in reads]
    assert server.stats()["connections_total"] == 3
    link.close()


def test_more_streams_than_there_may_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.InvalidArgumentError):
        native.tcp_reader("127.0.0.1:1", bytes(32), streams=17, connect_now=False)


# --- transports of somebody else's -------------------------------------------------------------------------
@pytest.fixture(params=cases(), ids=lambda case: case.name)
def side(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Transport]:
    made: TransportCase = request.param()
    return lambda: made.open(tmp_path)


@pytest.mark.parametrize("mode", ["undisturbed", "all of these"])
class TestPlugged(PeerConformance):
    @pytest.fixture
    def link(self, world: SlabWorld, side: Callable[[], Transport], mode: str) -> Iterator[Link]:
        link = transport_link(world, side, TRANSPARENT[mode])
        yield link
        link.close()


class TestPluggedFaults(FaultConformance):
    @pytest.fixture
    def link(self, world: SlabWorld, side: Callable[[], Transport]) -> Iterator[Link]:
        link = transport_link(world, side)
        yield link
        link.close()


class TestPluggedAccess(AccessConformance):
    @pytest.fixture
    def pair(self, world: SlabWorld, side: Callable[[], Transport]) -> Iterator[Pair]:
        pair = Pair(world, side)
        yield pair
        pair.close()


def test_what_a_python_reader_answers_is_checked() -> None:
    answers: dict[int, object] = {
        1: b"x" * 16,
        2: b"x" * 15,
        3: "no bytes",
        4: errors.NotFoundError("no"),
        5: OSError("no"),
    }

    def read(base_id: int, offset: int, length: int) -> bytes:
        answer = answers[base_id]
        if isinstance(answer, Exception):
            raise answer
        return answer  # type: ignore[return-value]

    reader = native.callback_reader("mine", read)
    got = reader.read_batch([(base_id, 0, 16) for base_id in answers])
    assert [code for code, _ in got] == ["ok", "corrupt", "internal", "not_found", "internal"]
    assert (reader.transport, reader.bytes_by_transport) == ("mine", {"mine": 16})
    reader.close()
    assert reader.read_batch([(1, 0, 16)]) == [("peer_unreachable", b"")]


def test_a_process_has_so_many_transports_and_no_more() -> None:
    script = (
        "from medes import errors, native\n"
        "for i in range(8):\n    native.callback_reader(f't{i}', print)\n"
        "assert native.callback_reader('t7', print).transport == 't7'\n"
        "try:\n    native.callback_reader('t8', print)\n"
        "except errors.LimitExceededError:\n    print('refused')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("refused\n", "")
