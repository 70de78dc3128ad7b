"""Channels: grpc and grpc.aio clients that raise catalogue errors and put a deadline on every unary call."""

from __future__ import annotations

import grpc
import grpc.aio

from medes.errors import MedesError, PeerUnreachableError
from medes.limits import GRPC_MESSAGE_BYTES_MAX, RPC_TIMEOUT_S
from medes.rpc.address import parse_address
from medes.rpc.calls import AioChannel, SyncChannel
from medes.rpc.tls import TlsFiles, channel_credentials

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


def _options(tls: TlsFiles | None) -> list[tuple[str, int | str]]:
    options: list[tuple[str, int | str]] = list(_CHANNEL_OPTIONS)
    if tls and tls.server_name:
        options.append(("grpc.ssl_target_name_override", tls.server_name))
    return options


def aio_channel(
    address: str,
    tls: TlsFiles | None = None,
    *,
    unreachable: type[MedesError] = PeerUnreachableError,
    timeout_s: float = RPC_TIMEOUT_S,
) -> AioChannel:
    """An asyncio channel; it connects on first use. The caller closes it.

    Calls raise catalogue errors: the server's own, `unreachable` when it does not answer, deadline_exceeded
    after timeout_s unless the call names its own timeout. Create it inside the event loop that uses it.
    """
    parsed = parse_address(address)
    credentials = channel_credentials(tls) if tls and not parsed.is_unix else None
    if credentials:
        channel = grpc.aio.secure_channel(parsed.target, credentials, _options(tls))
    else:
        channel = grpc.aio.insecure_channel(parsed.target, _options(None))
    return AioChannel(channel, unreachable, parsed.target, timeout_s)


def sync_channel(
    address: str,
    tls: TlsFiles | None = None,
    *,
    unreachable: type[MedesError] = PeerUnreachableError,
    timeout_s: float = RPC_TIMEOUT_S,
) -> SyncChannel:
    """The blocking twin of aio_channel."""
    parsed = parse_address(address)
    credentials = channel_credentials(tls) if tls and not parsed.is_unix else None
    if credentials:
        channel = grpc.secure_channel(parsed.target, credentials, _options(tls))
    else:
        channel = grpc.insecure_channel(parsed.target, _options(None))
    return SyncChannel(channel, unreachable, parsed.target, timeout_s)
