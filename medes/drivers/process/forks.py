"""What sandboxes fork, as the kernel tells of it (process events, Linux 6.6 for an agent without CAP_NET_ADMIN).

A look at the process table every few seconds misses a child that leaves its parents and their session in between
(`daemon()`); the kernel names the parent of each new process once, when it is made. A hint beside the looks, and as good
as not there in a container, where the kernel tells nothing.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import select
import socket
import struct
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable

from medes.errors import MedesError

log = logging.getLogger(__name__)

NETLINK_CONNECTOR, CN_IDX_PROC, CN_VAL_PROC = 11, 1, 1  # linux/netlink.h, linux/connector.h
NLMSG_DONE, PROC_CN_MCAST_LISTEN, PROC_EVENT_FORK = 3, 1, 1
NETLINK_HEADER, CONNECTOR_HEADER = struct.Struct("=IHHII"), struct.Struct("=IIIIHH")
LISTEN = struct.Struct("=II")
EVENT = struct.Struct("=IIQ")  # what, cpu, time
FORK = struct.Struct("=IIII")  # parent pid, parent tgid, child pid, child tgid
EVENT_AT = NETLINK_HEADER.size + CONNECTOR_HEADER.size
RECEIVE_BYTES = 1 << 20  # asked for; the kernel gives what net.core.rmem_max admits
MESSAGE_BYTES_MAX = 4096
PAUSE_S = 0.05  # events are read together: a machine may fork thousands of times a second
FOLLOWED_MAX = 100_000
MESSAGES_AT_ONCE = 20_000

Process = tuple[int, int]  # pid, start time in clock ticks


class Forks:
    """Processes of sandboxes, and what these have forked since. From any thread."""

    def __init__(self, start_time: Callable[[int], int]) -> None:
        """`start_time` of a pid; 0 when there is no such process. Raises why that cannot be told."""
        self._start_time = start_time
        self._lock = threading.Lock()
        self._owner: dict[int, str] = {}  # pid → sandbox
        self._owned: dict[str, set[int]] = defaultdict(set)  # sandbox → pids: the same
        self._forked: dict[str, dict[int, int]] = defaultdict(dict)  # sandbox → pid → start time
        self._told: dict[str, set[int]] = {}  # sandbox → its pids as of the last seen()
        self._socket: socket.socket | None = None
        self._tried = False
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def follow(self, sandbox_id: str, processes: Iterable[Process]) -> None:
        """These are what the sandbox has, of what seen() told and beside it; what they fork from now on is noted. Listens
        from the first time on."""
        with self._lock:
            if not self._tried:
                self._listen()
            if self._socket is None:
                return
            told, forked = self._told.pop(sandbox_id, set()), self._forked[sandbox_id]
            now = {pid for pid, _ in processes}
            for pid in told - now:
                forked.pop(pid, None)
                if self._owner.get(pid) == sandbox_id:
                    self._disown(pid)
            if len(self._owner) + len(now) <= FOLLOWED_MAX:
                for pid in now:
                    self._own(pid, sandbox_id)

    def seen(self, sandbox_id: str) -> list[Process]:
        """What was forked since follow() first named an ancestor, up to now; it may have ended."""
        with self._lock:
            self._read()
            self._told[sandbox_id] = set(self._owned.get(sandbox_id, ()))
            return list(self._forked.get(sandbox_id, {}).items())

    def forget(self, sandbox_id: str) -> None:
        with self._lock:
            self._told.pop(sandbox_id, None)
            self._forked.pop(sandbox_id, None)
            for pid in self._owned.pop(sandbox_id, ()):
                del self._owner[pid]

    def _own(self, pid: int, sandbox_id: str) -> None:
        self._disown(pid)
        self._owner[pid] = sandbox_id
        self._owned[sandbox_id].add(pid)

    def _disown(self, pid: int) -> str | None:
        """Whose it was."""
        owner = self._owner.pop(pid, None)
        if owner is not None:
            self._owned[owner].discard(pid)
        return owner

    def close(self) -> None:
        """Idempotent."""
        self._end.set()
        if self._thread is not None:
            self._waker.close()
            self._thread.join()
        with self._lock:
            self._tried = True
            if self._socket is not None:
                self._socket.close()
                self._socket = None

    def _listen(self) -> None:
        self._tried = True
        try:
            events = socket.socket(
                socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, NETLINK_CONNECTOR
            )
        except OSError as error:
            log.info("the kernel does not tell of forks: %s", error)
            return
        try:
            events.setblocking(False)
            events.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
            events.bind((0, CN_IDX_PROC))
            wish = LISTEN.pack(PROC_CN_MCAST_LISTEN, PROC_EVENT_FORK)
            body = CONNECTOR_HEADER.pack(CN_IDX_PROC, CN_VAL_PROC, 0, 0, len(wish), 0) + wish
            events.send(NETLINK_HEADER.pack(NETLINK_HEADER.size + len(body), NLMSG_DONE, 0, 0, 0) + body)
        except OSError as error:
            events.close()
            log.info("the kernel does not tell of forks: %s", error)
            return
        self._socket = events
        wake, self._waker = socket.socketpair()
        self._thread = threading.Thread(
            target=self._run, args=(events, wake), name="medes-forks", daemon=True
        )
        self._thread.start()

    def _run(self, events: socket.socket, wake: socket.socket) -> None:
        with wake, contextlib.suppress(OSError, ValueError):  # it is closed
            while not self._end.wait(PAUSE_S):
                select.select([events, wake], [], [])
                with self._lock:
                    self._read()

    def _read(self) -> None:
        """All that has come. The lock is held."""
        for _ in range(MESSAGES_AT_ONCE):
            if self._socket is None:
                return
            try:
                self._take(self._socket.recv(MESSAGE_BYTES_MAX))
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    continue  # some are lost; the looks find what they can
                return

    def _take(self, message: bytes) -> None:
        if len(message) < EVENT_AT + EVENT.size + FORK.size:
            return
        what, _, _ = EVENT.unpack_from(message, EVENT_AT)
        if what != PROC_EVENT_FORK:
            return
        _, parent, child, process = FORK.unpack_from(message, EVENT_AT + EVENT.size)
        if child != process:  # a thread
            return
        owner = self._owner.get(parent)
        if owner is None:
            if (before := self._disown(child)) is not None:  # the number came again
                self._forked[before].pop(child, None)
            return
        if len(self._owner) >= FOLLOWED_MAX:
            return
        self._own(child, owner)
        with contextlib.suppress(MedesError):
            if ticks := self._start_time(child):
                self._forked[owner][child] = ticks
