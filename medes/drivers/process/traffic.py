"""Bytes that a process's connections have carried, as the kernel counts them.

    in the agent's network namespace    the TCP sockets that the process has open, by sock_diag (sock_diag(7))
    in another one                      what its interfaces, but loopback, have sent and received: the namespace is the sandbox's

Unix sockets are counted nowhere, and what a socket carried before it was closed between two looks is not seen.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from medes.limits import DIAG_SOCKETS_MAX

PROC = "/proc"
NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
NLM_F_REQUEST, NLM_F_DUMP = 0x1, 0x300
NLMSG_ERROR, NLMSG_DONE = 2, 3
INET_DIAG_INFO = 2
# Connections that carry or carried bytes: ESTABLISHED, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT.
STATES = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 8
RECEIVE_BYTES = 1 << 16
ANSWER_S_MAX = 1.0

_HEADER = struct.Struct("=IHHII")  # nlmsghdr
_REQUEST = struct.Struct("=BBBxI48x")  # inet_diag_req_v2 of any address
_COOKIE = struct.Struct("=II")
_COOKIE_AT = 44
_INODE_AT = 68
_MESSAGE_BYTES = 72  # inet_diag_msg
_ATTRIBUTE = struct.Struct("=HH")  # rtattr
_INFO_BYTES = struct.Struct("=QQ")  # tcp_info.tcpi_bytes_acked, tcpi_bytes_received
_INFO_BYTES_AT = 120


class Connection(NamedTuple):
    """A TCP socket: no other one of this boot has its cookie."""

    cookie: int
    carried_bytes: int


class Carried:
    """One look at the agent's network namespace, made when it is first needed. For one thread."""

    def __init__(self) -> None:
        self._own = _namespace("self")
        self._connections: dict[int, Connection] | None = None

    def by(self, pids: Iterable[int]) -> dict[int, int]:
        """(blocks) Bytes by connection, or by what stands for a namespace's: a number below zero."""
        found: dict[int, int] = {}
        for pid in pids:
            try:
                namespace = _namespace(pid)
                if namespace == self._own:
                    found.update(self._of_sockets(pid))
                else:
                    found[-namespace] = interface_bytes(Path(f"{PROC}/{pid}/net/dev").read_text())
            except (OSError, ValueError):  # it has ended, or may not be looked at
                continue
        return found

    def _of_sockets(self, pid: int) -> Iterator[tuple[int, int]]:
        if self._connections is None:
            self._connections = tcp_connections()
        if not self._connections:
            return
        with os.scandir(f"{PROC}/{pid}/fd") as descriptors:
            for descriptor in descriptors:
                connection = self._connections.get(_inode(descriptor.path))
                if connection is not None:
                    yield connection


def tcp_connections() -> dict[int, Connection]:
    """(blocks) By inode. Empty where the kernel does not tell (CONFIG_INET_TCP_DIAG)."""
    found: dict[int, Connection] = {}
    try:
        with socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_SOCK_DIAG
        ) as link:
            link.settimeout(ANSWER_S_MAX)
            for family in (socket.AF_INET, socket.AF_INET6):
                body = _REQUEST.pack(family, socket.IPPROTO_TCP, 1 << INET_DIAG_INFO - 1, STATES)
                flags = NLM_F_REQUEST | NLM_F_DUMP
                link.send(
                    _HEADER.pack(_HEADER.size + len(body), SOCK_DIAG_BY_FAMILY, flags, family, 0) + body
                )
                ended = False
                while not ended and len(found) < DIAG_SOCKETS_MAX:
                    answer, (sender, _) = link.recvfrom(RECEIVE_BYTES)
                    if sender != 0:  # no word of the kernel's
                        continue
                    connections, ended = parse_dump(answer)
                    found.update(connections)
    except OSError:
        return {}
    return found


def parse_dump(answer: bytes) -> tuple[list[tuple[int, Connection]], bool]:
    """The connections of one datagram by inode, and whether the dump ends with it. What is malformed ends it."""
    found: list[tuple[int, Connection]] = []
    at = 0
    while at + _HEADER.size <= len(answer):
        size, kind, _, _, _ = _HEADER.unpack_from(answer, at)
        if kind in (NLMSG_DONE, NLMSG_ERROR) or size < _HEADER.size or at + size > len(answer):
            return found, True
        if kind == SOCK_DIAG_BY_FAMILY and size >= _HEADER.size + _MESSAGE_BYTES:
            connection = _connection(answer[at + _HEADER.size : at + size])
            if connection is not None:
                found.append(connection)
        at += size + 3 & ~3
    return found, not answer


def _connection(message: bytes) -> tuple[int, Connection] | None:
    (inode,) = struct.unpack_from("=I", message, _INODE_AT)
    low, high = _COOKIE.unpack_from(message, _COOKIE_AT)
    at = _MESSAGE_BYTES
    while inode and at + _ATTRIBUTE.size <= len(message):
        size, kind = _ATTRIBUTE.unpack_from(message, at)
        if size < _ATTRIBUTE.size:
            return None
        end = min(at + size, len(message))
        if kind == INET_DIAG_INFO and end - at >= _ATTRIBUTE.size + _INFO_BYTES_AT + _INFO_BYTES.size:
            acked, received = _INFO_BYTES.unpack_from(message, at + _ATTRIBUTE.size + _INFO_BYTES_AT)
            return inode, Connection(high << 32 | low, acked + received)
        at += size + 3 & ~3
    return None


def interface_bytes(net_dev: str) -> int:
    """Sent and received by all interfaces but loopback. Raises ValueError for another file."""
    total = 0
    for line in net_dev.splitlines()[2:]:
        name, _, counts = line.partition(":")
        if name.strip() != "lo":
            fields = counts.split()
            if len(fields) < 9:
                raise ValueError("no counts of an interface")
            total += int(fields[0]) + int(fields[8])
    return total


def _namespace(pid: int | str) -> int:
    """0 for a process that has ended, and for all on a kernel without such namespaces."""
    try:
        return Path(f"{PROC}/{pid}/ns/net").stat().st_ino
    except FileNotFoundError:
        return 0


def _inode(descriptor: str) -> int:
    """Of a socket's descriptor; 0 for any other, and for one that was closed meanwhile."""
    try:
        target = os.readlink(descriptor)  # noqa: PTH115 (there are thousands)
    except FileNotFoundError:
        return 0
    return int(target[8:-1]) if target.startswith("socket:[") else 0
