"""What connections have carried: of real sockets, and of whatever bytes an answer may have."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from medes.drivers.process import traffic
from medes.drivers.process.traffic import Carried, Connection, _namespace, interface_bytes, parse_dump


@pytest.fixture
def link() -> Iterator[tuple[socket.socket, socket.socket]]:
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        client = stack.enter_context(socket.create_connection(server.getsockname()))
        accepted, _ = server.accept()
        yield client, stack.enter_context(accepted)


def own() -> dict[int, int]:
    carried = Carried().by([os.getpid()])
    if not traffic.tcp_connections():
        pytest.skip("the kernel tells nothing of TCP sockets (CONFIG_INET_TCP_DIAG)")
    return carried


def test_what_a_socket_carries_is_counted_at_both_ends(link: tuple[socket.socket, socket.socket]) -> None:
    before, (client, accepted) = own(), link
    size = 1 << 20
    sender = threading.Thread(target=client.sendall, args=(bytes(size),))
    sender.start()
    left = size
    while left:
        left -= len(accepted.recv(min(left, 1 << 16)))
    sender.join()
    accepted.sendall(b"x")  # carries the last acknowledgement
    assert client.recv(1) == b"x"
    after = own()
    grown = sorted(count - before.get(cookie, 0) for cookie, count in after.items())
    assert grown[-2:] == pytest.approx([size, size], abs=8)


def test_a_closed_socket_is_forgotten_and_others_are_not_ours(
    link: tuple[socket.socket, socket.socket],
) -> None:
    before = own()
    link[0].close()
    assert set(before) - set(own())
    assert Carried().by([1 << 22]) == {}  # no process has this number


def test_another_namespace_tells_by_its_interfaces() -> None:
    command = ["unshare", "--net", sys.executable, "-c", "print(flush=True); input()"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL) as process:
        assert process.stdin is not None and process.stdout is not None
        if not process.stdout.readline():
            pytest.skip("no network namespace can be made here")
        assert Carried().by([process.pid]) == {-_namespace(process.pid): 0}
        process.stdin.close()


def test_a_kernel_without_network_namespaces_is_one(
    link: tuple[socket.socket, socket.socket], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for pid in ("self", "7"):
        (tmp_path / pid).mkdir()
    (tmp_path / "7" / "fd").symlink_to(f"/proc/{os.getpid()}/fd")
    expected = own()
    monkeypatch.setattr(traffic, "PROC", str(tmp_path))
    assert set(Carried().by([7, 8])) == set(expected)


def message(inode: int, cookie: int, info: bytes | None, before: bytes = b"") -> bytes:
    body = bytearray(72)
    struct.pack_into("=II", body, 44, cookie & 0xFFFFFFFF, cookie >> 32)
    struct.pack_into("=I", body, 68, inode)
    attributes = before
    if info is not None:
        attributes += struct.pack("=HH", 4 + len(info), 2) + info
    size = 16 + len(body) + len(attributes)
    return (struct.pack("=IHHII", size, 20, 2, 2, 0) + bytes(body) + attributes).ljust(size + 3 & ~3, b"\0")


def info(acked: int, received: int) -> bytes:
    return bytes(120) + struct.pack("=QQ", acked, received) + bytes(96)


DONE = struct.pack("=IHHIIi", 20, 3, 2, 2, 0, 0)
numbers = st.integers(1, (1 << 32) - 1)
counts = st.integers(0, (1 << 62))


@given(st.lists(st.tuples(numbers, st.integers(0, (1 << 64) - 1), counts, counts), max_size=20))
def test_a_dump_is_read_as_it_was_written(told: list[tuple[int, int, int, int]]) -> None:
    attribute = struct.pack("=HHI", 8, 7, 9)  # one that is of no interest
    answer = b"".join(message(i, c, info(a, r), attribute) for i, c, a, r in told)
    expected = [(i, Connection(c, a + r)) for i, c, a, r in told]
    assert parse_dump(answer) == (expected, not answer)
    assert parse_dump(answer + DONE) == (expected, True)


@given(st.binary(max_size=400), st.integers(0, 400), st.binary(max_size=80))
@example(b"", 0, b"")
def test_no_answer_does_harm(noise: bytes, at: int, end: bytes) -> None:
    good = message(5, 6, info(7, 8)) + message(9, 10, None)
    for answer in (noise, good[:at] + noise, good[:at] + noise + good[at + len(noise) :], good + noise + end):
        connections, _ = parse_dump(answer)
        assert len(connections) <= len(answer) // 88


@pytest.mark.parametrize("size", [0, 1, 15, 4096, 0xFFFFFFFF])
def test_an_impossible_length_ends_a_dump(size: int) -> None:
    assert parse_dump(message(5, 6, info(7, 8)) + struct.pack("=IHHII", size, 20, 0, 0, 0)) == (
        [(5, Connection(6, 15))],
        True,
    )


def test_interfaces_count_but_for_loopback() -> None:
    head = "Inter-|   Receive  |  Transmit\n face |bytes packets | bytes packets\n"
    line = "{}: {} 1 0 0 0 0 0 0 {} 1 0 0 0 0 0 0\n"
    assert interface_bytes(head + line.format("    lo", 100, 100)) == 0
    assert interface_bytes(head + line.format("lo", 9, 9) + line.format("  eth0", 70, 8)) == 78
    for broken in (head + "eth0: 1 2\n", head + line.format("eth0", "many", 8)):
        with pytest.raises(ValueError):
            interface_bytes(broken)
