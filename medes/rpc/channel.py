"""Channels: grpc and grpc.aio clients that raise catalogue errors and put a deadline on every unary call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import grpc
import grpc.aio

from medes.errors import MedesError, PeerUnreachableError
from medes.limits import GRPC_MESSAGE_BYTES_MAX, RPC_TIMEOUT_S
from medes.rpc.address import parse_address
from medes.rpc.calls import AioChannel, SyncChannel
from medes.rpc.tls import channel_credentials

if TYPE_CHECKING:
    from medes.certs.identity import Identity

# A peer that vanished without closing is noticed by pings; reconnecting starts fast, since daemons on the same
# host come back within a second.
_CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", GRPC_MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", GRPC_MESSAGE_BYTES_MAX),
    ("grpc.initial_reconnect_backoff_ms", 100),
    # In spite of its name the deadline of one attempt to connect: a busy machine may need more than 100 ms.
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_metadata_size", 16384),
)


# A channel that was replaced is closed after the longest calls that may still be on it.
REPLACED_CLOSE_AFTER_S = 120.0


def _options(server_name: str = "") -> list[tuple[str, int | str]]:
    options: list[tuple[str, int | str]] = list(_CHANNEL_OPTIONS)
    if server_name:
        options.append(("grpc.ssl_target_name_override", server_name))
    return options


def aio_channel(
    address: str,
    identity: Identity | None = None,
    *,
    server_name: str = "",
    unreachable: type[MedesError] = PeerUnreachableError,
    timeout_s: float = RPC_TIMEOUT_S,
    request_bytes_max: int = GRPC_MESSAGE_BYTES_MAX,
) -> AioChannel:
    """An asyncio channel; it connects on first use. The caller closes it.

    With an identity TCP is mutual TLS, and the server's certificate must be for `server_name` (empty: the address's
    host); without, and on unix sockets, it is plain. Calls raise catalogue errors: the server's own, `unreachable`
    when it does not answer, deadline_exceeded after timeout_s unless the call names its own timeout, limit_exceeded for a
    request above request_bytes_max: what the server takes. Create it inside the event loop that uses it.
    """
    parsed = parse_address(address)
    if identity and not parsed.is_unix:
        credentials = channel_credentials(identity)
        channel = grpc.aio.secure_channel(parsed.target, credentials, _options(server_name))
    else:
        channel = grpc.aio.insecure_channel(parsed.target, _options())
    return AioChannel(channel, unreachable, parsed.target, timeout_s, request_bytes_max)


def sync_channel(
    address: str,
    identity: Identity | None = None,
    *,
    server_name: str = "",
    unreachable: type[MedesError] = PeerUnreachableError,
    timeout_s: float = RPC_TIMEOUT_S,
    request_bytes_max: int = GRPC_MESSAGE_BYTES_MAX,
) -> SyncChannel:
    """The blocking twin of aio_channel."""
    parsed = parse_address(address)
    if identity and not parsed.is_unix:
        channel = grpc.secure_channel(parsed.target, channel_credentials(identity), _options(server_name))
    else:
        channel = grpc.insecure_channel(parsed.target, _options())
    return SyncChannel(channel, unreachable, parsed.target, timeout_s, request_bytes_max)


class Calls(Protocol):
    """A service's calls, however they get there."""

    @property
    def stub(self) -> Any:
        """As generated: a coroutine function a method, which raises catalogue errors."""
        ...

    async def close(self) -> None:
        """Ends running calls. Idempotent."""
        ...


class LastingStub:
    """A service's calls over a channel that outlives certificates: when the identity has a newer one, calls go over a
    new channel, and those under way end on the old one. Use from one event loop."""

    def __init__(
        self, stub: Callable[[Any], Any], make: Callable[[], AioChannel], identity: Identity | None
    ) -> None:
        self._make_stub = stub
        self._make = make
        self._identity = identity
        self._replaced: set[asyncio.Task[None]] = set()
        self._open()

    def _open(self) -> None:
        self._generation = self._identity.generation if self._identity else 0
        self._channel = self._make()
        self._stub = self._make_stub(self._channel)

    @property
    def stub(self) -> Any:
        if self._identity and self._identity.generation != self._generation:
            task = asyncio.get_running_loop().create_task(_close_later(self._channel))
            self._replaced.add(task)
            task.add_done_callback(self._replaced.discard)
            self._open()
        return self._stub

    async def close(self) -> None:
        """Ends running calls. Idempotent."""
        for task in list(self._replaced):
            task.cancel()
        await asyncio.gather(*self._replaced, return_exceptions=True)
        await self._channel.close()


async def _close_later(channel: AioChannel) -> None:
    try:
        await asyncio.sleep(REPLACED_CLOSE_AFTER_S)
    finally:
        await channel.close()
