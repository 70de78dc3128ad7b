"""Servers: a grpc.aio server with error mapping, health, reflection, TLS and bounded messages."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from medes.errors import IoError, PermissionDeniedError
from medes.limits import GRPC_MESSAGE_BYTES_MAX, RPCS_CONCURRENT_MAX
from medes.rpc.address import Address, clear_stale_socket, parse_address
from medes.rpc.identity import Access
from medes.rpc.services import Observer, Services, what_serves
from medes.rpc.tls import server_credentials

if TYPE_CHECKING:
    from medes.certs.identity import Identity


# At debug level gRPC's server logs itself while it is being deallocated: whoever keeps that record, or only formats it,
# has an object that is freed twice.
logging.getLogger("grpc._cython.cygrpc").setLevel(logging.INFO)


class RpcServer:
    """A grpc.aio server on one or more addresses. Use from one event loop; stop() is idempotent.

    `observer` is told of every finished call (method, code, seconds): the metrics. `access` refuses callers that may
    not.
    """

    def __init__(
        self,
        *,
        observer: Observer | None = None,
        access: Access | None = None,
        receive_bytes_max: int = GRPC_MESSAGE_BYTES_MAX,
    ) -> None:
        """gRPC refuses a request of more than `receive_bytes_max` before it is parsed; give clients the same bound."""
        self._grpc = grpc.aio.server(
            # so_reuseport off: a second daemon on the same port must fail instead of sharing its calls.
            options=[
                ("grpc.max_receive_message_length", receive_bytes_max),
                ("grpc.max_send_message_length", GRPC_MESSAGE_BYTES_MAX),
                # Clients with a quiet stream ping once a minute; gRPC would take that for an attack.
                ("grpc.http2.min_ping_interval_without_data_ms", 30_000),
                ("grpc.so_reuseport", 0),
                ("grpc.max_metadata_size", 16384),
            ],
            maximum_concurrent_rpcs=RPCS_CONCURRENT_MAX,
        )
        self.server = Services(self._grpc, observer, self._what, access)  # what servicers are added to
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.server)
        self._services: list[str] = []
        self._sockets: list[tuple[Path, int]] = []
        self._stopped = False

    def _what(self) -> str:
        return next(filter(None, map(what_serves, self._services)), "")

    def add_service(self, full_name: str) -> None:
        """Names a service (e.g. "medes.v1.ControllerService") for health and reflection."""
        self._services.append(full_name)

    def bind(
        self,
        address: str,
        identity: Identity | None = None,
        *,
        unix_mode: int = 0o600,
        group: int = -1,
    ) -> Address:
        """Listens on `address` (port 0: any free one) and returns the address it got.

        Without an identity TCP is plain: that is for `insecure_plaintext` alone. A unix socket gets `unix_mode` and
        `group` (never TLS); one left by a dead process is replaced. Raises io when the
        address cannot be had, already_exists when another process listens on the socket.
        """
        parsed = parse_address(address, allow_port_zero=True)
        if parsed.is_unix:
            return self._bind_unix(parsed, unix_mode, group)
        try:
            if identity:
                self.server.believe(identity)
                port = self._grpc.add_secure_port(parsed.target, server_credentials(identity))
            else:
                port = self._grpc.add_insecure_port(parsed.target)
        except RuntimeError as error:
            raise IoError(
                "cannot listen there (in use, or not an address of this host?)", object=address
            ) from error
        if port == 0:
            raise IoError("cannot listen there", object=address)
        return Address(host=parsed.host, port=port)

    def _bind_unix(self, parsed: Address, unix_mode: int, group: int) -> Address:
        path = Path(parsed.path)
        clear_stale_socket(path)
        if not path.parent.is_dir():
            # One level: /run/medes on a machine without a service manager that makes it.
            try:
                path.parent.mkdir(mode=0o755)
            except OSError as error:
                raise IoError(
                    f"cannot make the socket's folder: {error.strerror}", object=str(path.parent)
                ) from error
        # The socket must never be open to others, not even between bind and chmod.
        previous = os.umask(0o177)
        try:
            self._grpc.add_insecure_port(parsed.target)
        except RuntimeError as error:
            raise IoError("cannot listen on this socket", object=parsed.path) from error
        finally:
            os.umask(previous)
        try:
            info = path.lstat()
            if group >= 0:
                os.chown(path, -1, group)
            path.chmod(unix_mode)
        except OSError as error:
            raise PermissionDeniedError(str(error), object=parsed.path) from error
        self._sockets.append((path, info.st_ino))
        return parsed

    async def start(self) -> None:
        """Serves from now on, healthy."""
        reflection.enable_server_reflection(
            (*self._services, health.SERVICE_NAME, reflection.SERVICE_NAME), self._grpc
        )
        self.server.refuse_the_rest()
        await self._grpc.start()
        for name in ("", *self._services):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    async def stop(self, grace_s: float = 5.0) -> None:
        """Refuses new calls, waits up to grace_s for those under way, removes the unix sockets it made."""
        if self._stopped:
            return
        self._stopped = True
        await self._health.enter_graceful_shutdown()
        await self._grpc.stop(grace_s)
        for path, inode in self._sockets:
            try:
                info = path.lstat()
            except OSError:
                continue  # gone already
            # Another daemon may have put its own socket there meanwhile.
            if stat.S_ISSOCK(info.st_mode) and info.st_ino == inode:
                path.unlink(missing_ok=True)

    def look_again(self) -> None:
        """The identity that it listens with has changed: ends streams of callers who are believed no more (calls are
        looked at one by one)."""
        self.server.look_again()

    async def wait(self) -> None:
        """Until stopped."""
        await self._grpc.wait_for_termination()
