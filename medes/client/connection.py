"""What the clients are made of: one channel to one daemon, made on construction, connected on first use."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

from medes.certs.parties import Role
from medes.certs.sources import TlsSource, client_identity
from medes.errors import AgentUnreachableError, MedesError
from medes.limits import GRPC_MESSAGE_BYTES_MAX, RPC_TIMEOUT_S
from medes.places import user_socket_beside
from medes.rpc.address import parse_address
from medes.rpc.channel import aio_channel, sync_channel
from medes.rpc.tls import TlsFiles


class _Connection:
    DEFAULT_ADDRESS: ClassVar[str]
    STUB: ClassVar[Any]  # the service's generated calls
    UNREACHABLE: ClassVar[type[MedesError]] = AgentUnreachableError
    HAS_USER_SOCKET: ClassVar[bool] = False
    REQUEST_BYTES_MAX: ClassVar[int] = GRPC_MESSAGE_BYTES_MAX  # that the daemon takes
    ROLE: ClassVar[Role]
    SERVER_NAME: ClassVar[str] = ""  # whom the server's certificate must be for; empty: its host
    _open: ClassVar[Any]

    def __init__(
        self, address: str | None = None, *, tls: TlsSource = None, timeout_s: float = RPC_TIMEOUT_S
    ) -> None:
        """`address`: unix:/path or host:port, DEFAULT_ADDRESS without it. `tls`, over TCP: certificate files; None for
        one that the cluster folder of this machine issues; PLAINTEXT for a cluster without TLS.

        Raises invalid_argument for a malformed address, unauthenticated where there is no certificate to show.
        """
        self.address = self.DEFAULT_ADDRESS if address is None else address
        if self.HAS_USER_SOCKET:
            self.address = _admitted(self.address)
        identity = None if parse_address(self.address).is_unix else client_identity(tls, self.ROLE)
        own_name = tls.server_name if isinstance(tls, TlsFiles) else ""
        self._channel: Any = self._open(
            self.address,
            identity,
            server_name=own_name or self.SERVER_NAME,
            unreachable=self.UNREACHABLE,
            timeout_s=timeout_s,
            request_bytes_max=self.REQUEST_BYTES_MAX,
        )
        self.stub: Any = self.STUB(self._channel)
        self._made()

    def _made(self) -> None:
        """For what a client adds to its connection."""


def _admitted(address: str) -> str:
    """The address itself, or the agent's socket for users beside it where this process may not open the first."""
    path = address.removeprefix("unix:")
    if path == address or not Path(path).exists() or os.access(path, os.W_OK, effective_ids=True):
        return address
    beside = user_socket_beside(path)
    return f"unix:{beside}" if Path(beside).exists() else address


class BlockingConnection(_Connection):
    """Close it, or use it as a context manager."""

    _open = staticmethod(sync_channel)

    def close(self) -> None:
        """Ends running calls. Idempotent."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AioConnection(_Connection):
    """The same for asyncio; create it inside the event loop that uses it."""

    _open = staticmethod(aio_channel)

    async def close(self) -> None:
        """Ends running calls. Idempotent."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()
