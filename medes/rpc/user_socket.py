"""A unix socket that any local user may open, for a gRPC server that must know who calls.

gRPC tells a server nothing of a unix socket's other end. So connections are taken here: the kernel says who connected
(SO_PEERCRED), and the bytes are passed on, unread, over a connection to the server's own socket, which lies in a folder
that nobody else gets into. That connection comes from a name made for it, which gRPC does tell (`context.peer()`):
the name leads back to the user. Clients of any language see an ordinary gRPC socket; the main socket is not touched.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import socket
import stat
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medes.errors import IoError, UnauthenticatedError
from medes.limits import (
    USER_BYTES_PER_S_MAX,
    USER_CONNECTIONS_EACH_MAX,
    USER_CONNECTIONS_MAX,
)
from medes.rpc.address import clear_stale_socket

log = logging.getLogger(__name__)

_CREDENTIALS = struct.Struct("3i")
_PART_BYTES = 64 << 10
_BACKLOG = 128


@dataclass(frozen=True, slots=True)
class Caller:
    """Who opened a connection: the process and its effective user at that moment."""

    pid: int
    uid: int


def peer_of(connection: socket.socket) -> Caller:
    """Who is at the other end of a unix socket. Raises OSError."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(raw)
    return Caller(pid, uid)


class _Rate:
    """Bytes a second of one user, over all of their connections."""

    def __init__(self) -> None:
        self._free_s = 0.0

    async def take(self, count: int) -> None:
        now_s = asyncio.get_running_loop().time()
        self._free_s = max(self._free_s, now_s) + count / USER_BYTES_PER_S_MAX
        # A second's worth may be ahead: only who goes on for longer waits.
        if (wait_s := self._free_s - now_s - 1.0) > 0:
            await asyncio.sleep(wait_s)


class UserSocket:
    """Listens on `path` for anybody and passes on to the socket `inner`. Use from one event loop."""

    def __init__(self, path: Path, inner: Path) -> None:
        self.path = path
        self._inner = inner
        self._names = itertools.count()
        self._callers: dict[str, Caller] = {}
        self._connections: Counter[int] = Counter()
        self._rates: dict[int, _Rate] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: socket.socket | None = None
        self._inode = 0

    @property
    def connections(self) -> int:
        """That are open now."""
        return self._connections.total()

    def caller(self, context: Any) -> Caller:
        """Who makes a call. Raises unauthenticated for one that did not come over this socket."""
        found = self._callers.get(context.peer().removeprefix("unix:"))
        if found is None:
            raise UnauthenticatedError("the caller is not known", object="user socket")
        return found

    def start(self) -> None:
        """Listens from now on. Raises already_exists when another process does, io."""
        clear_stale_socket(self.path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(str(self.path))
            self.path.chmod(0o666)
            self._inode = self.path.lstat().st_ino
            listener.listen(_BACKLOG)
        except OSError as error:
            listener.close()
            raise IoError(f"cannot listen on this socket: {error.strerror}", object=str(self.path)) from error
        listener.setblocking(False)
        self._listener = listener
        self._spawn(self._accept(listener))

    async def stop(self) -> None:
        """Ends every connection and removes the socket. Idempotent."""
        if self._listener is None:
            return
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._listener.close()
        self._listener = None
        with contextlib.suppress(OSError):
            info = self.path.lstat()
            if stat.S_ISSOCK(info.st_mode) and info.st_ino == self._inode:
                self.path.unlink()

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                outer, _ = await loop.sock_accept(listener)
            except OSError as error:  # no descriptor left, or the other end is gone already
                log.warning("%s: %s", self.path, error)
                await asyncio.sleep(0.1)
                continue
            try:
                caller = peer_of(outer)
            except OSError:
                outer.close()
                continue
            each, total = self._connections[caller.uid], self.connections
            if each >= USER_CONNECTIONS_EACH_MAX or total >= USER_CONNECTIONS_MAX:
                log.debug("%s: refused a connection of uid %d: %d open", self.path, caller.uid, each)
                outer.close()
                continue
            self._connections[caller.uid] += 1
            self._spawn(self._serve(outer, caller))

    async def _serve(self, outer: socket.socket, caller: Caller) -> None:
        # Bound to a name for as long as bind takes: the kernel keeps it for the other end to see.
        name = self._inner.with_name(f"{self._inner.name}-{next(self._names)}")
        inner = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            inner.setblocking(False)
            outer.setblocking(False)
            inner.bind(str(name))
            name.unlink()
            self._callers[str(name)] = caller
            await asyncio.get_running_loop().sock_connect(inner, str(self._inner))
            rate = self._rates.setdefault(caller.uid, _Rate())
            ways = [
                asyncio.create_task(_pass_on(outer, inner, rate)),
                asyncio.create_task(_pass_on(inner, outer, rate)),
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        except OSError as error:
            log.debug("%s: %s", self.path, error)
        finally:
            self._callers.pop(str(name), None)
            inner.close()
            outer.close()
            self._connections[caller.uid] -= 1
            if not self._connections[caller.uid]:
                del self._connections[caller.uid]
                self._rates.pop(caller.uid, None)


async def _pass_on(source: socket.socket, target: socket.socket, rate: _Rate) -> None:
    """Until either end closes. What is under way is bounded by one part: a slow reader holds its writer back."""
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError):
        while part := await loop.sock_recv(source, _PART_BYTES):
            await loop.sock_sendall(target, part)
            await rate.take(len(part))
