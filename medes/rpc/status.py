"""Errors on the wire: catalogue error ↔ gRPC status + trailing metadata `medes-error-bin`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from medes.errors import (
    BY_CODE,
    AgentUnreachableError,
    BusyError,
    CancelledError,
    ControllerUnreachableError,
    CorruptError,
    DeadlineExceededError,
    InternalError,
    InvalidArgumentError,
    LimitExceededError,
    MedesError,
    NotFoundError,
    PeerUnreachableError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnsupportedError,
    WrongStateError,
    from_code,
)
from medes.limits import ERROR_TEXT_CHARS_MAX
from medes.rpc.gen import common_pb2

ERROR_METADATA_KEY = "medes-error-bin"
ACTIVITIES_TAKEN = "medes-activities"  # initial metadata of the Activities call: the agent reads

# What a bare status means when the peer (or gRPC itself) sent no detail. UNAVAILABLE and CANCELLED: see below.
# RESOURCE_EXHAUSTED: gRPC refuses calls above RPCS_CONCURRENT_MAX with it. And messages that are too long, which is why both
# ends look at their own before gRPC does (`packed`).
_BY_STATUS: dict[grpc.StatusCode, type[MedesError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgumentError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDeniedError,
    grpc.StatusCode.UNIMPLEMENTED: UnsupportedError,
    grpc.StatusCode.FAILED_PRECONDITION: WrongStateError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: BusyError,
    grpc.StatusCode.OUT_OF_RANGE: LimitExceededError,
    grpc.StatusCode.DATA_LOSS: CorruptError,
    grpc.StatusCode.UNAUTHENTICATED: UnauthenticatedError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    grpc.StatusCode.ABORTED: CancelledError,
}


# Who does not answer, and what to do about it.
_ABSENT: dict[type[MedesError], tuple[str, str]] = {
    AgentUnreachableError: (
        "no agent answers here",
        "start it with medes agent or systemctl start medes-agent, or name another address: --agent, MEDES_AGENT",
    ),
    ControllerUnreachableError: (
        "no controller answers here",
        "start it with medes controller or systemctl start medes-controller, or name another address: --controller",
    ),
    PeerUnreachableError: ("the agent of this node does not answer", "is it running there?"),
}


def status_of(error: MedesError) -> grpc.StatusCode:
    """The gRPC status an error is sent with."""
    return grpc.StatusCode[error.grpc_status]


def error_detail(error: MedesError) -> common_pb2.ErrorDetail:
    """The error as a message, texts cut to ERROR_TEXT_CHARS_MAX."""
    return common_pb2.ErrorDetail(
        code=error.code,
        message=error.message[:ERROR_TEXT_CHARS_MAX],
        object=error.object[:ERROR_TEXT_CHARS_MAX],
        hint=error.hint[:ERROR_TEXT_CHARS_MAX],
    )


def error_metadata(error: MedesError) -> tuple[tuple[str, bytes], ...]:
    """Trailing metadata that carries the error whole."""
    return ((ERROR_METADATA_KEY, error_detail(error).SerializeToString()),)


def error_from_status(
    status: grpc.StatusCode,
    details: str,
    trailing_metadata: Iterable[Any] | None,
    *,
    unreachable: type[MedesError] = PeerUnreachableError,
    peer: str = "",
) -> MedesError:
    """The catalogue error behind a failed call; never raises.

    `unreachable` is what UNAVAILABLE without a detail means on this channel, `peer` the object it names.
    """
    for key, value in trailing_metadata or ():
        if key != ERROR_METADATA_KEY:
            continue
        try:
            detail = common_pb2.ErrorDetail.FromString(bytes(value))
        except DecodeError:
            break  # a broken detail says less than the status does
        if detail.code in BY_CODE:
            return from_code(detail.code, detail.message, detail.object, detail.hint)
        break
    text = details or status.name
    # A caller's own cancellation never comes here: this one is a server that ended while it held the call.
    if status in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
        what, hint = _ABSENT.get(unreachable, ("does not answer", "is it running there?"))
        return unreachable(f"{what}: {_reason(text)}", object=peer, hint=hint)
    return _BY_STATUS.get(status, InternalError)(text, object=peer)


def _reason(text: str) -> str:
    """What gRPC says of a connection that failed, without its own words around it."""
    said = re.split(r"last error: |\berror: ", text)[-1].strip()
    return re.sub(r"^[A-Z_]+: (?:ipv[46]|unix):\S+: ", "", said)[:ERROR_TEXT_CHARS_MAX]


def packed(message: Any, serialize: Callable[[Any], bytes] | None, bytes_max: int, what: str) -> bytes:
    """A message as it is sent. Raises limit_exceeded where the other end would refuse it, which gRPC tells like busy."""
    data: bytes = serialize(message) if serialize else message
    require_size(len(data), bytes_max, what)
    return data


def require_size(size_bytes: int, bytes_max: int, what: str) -> None:
    """Raises limit_exceeded."""
    if size_bytes > bytes_max:
        raise LimitExceededError(f"a message of {size_bytes} bytes; at most {bytes_max}", object=what)


def error_from_rpc(
    error: grpc.RpcError, *, unreachable: type[MedesError] = PeerUnreachableError, peer: str = ""
) -> MedesError:
    """The same for an exception of the sync or asyncio API."""
    call: Any = error  # the sync API raises objects that are RpcError and Call at once
    try:
        return error_from_status(
            call.code(), call.details() or "", call.trailing_metadata(), unreachable=unreachable, peer=peer
        )
    except AttributeError:
        return InternalError(str(error), object=peer)
