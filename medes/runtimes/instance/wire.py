"""Frames between the function host and an instance: u32 big-endian length, then that many bytes of JSON.

Both sides check the length before they allocate. The instance end is blocking and belongs to one thread.
"""

import json
import socket
import struct
from typing import Any

# An event or answer of 6 MiB (as AWS Lambda) can double when JSON escapes it; the rest is the envelope.
FRAME_BYTES_MAX = (12 << 20) + (64 << 10)
HEADER = struct.Struct(">I")


class FrameError(Exception):
    """The peer sent a malformed or oversized frame: the connection cannot be used any more."""


def pack(message: dict[str, Any]) -> bytes:
    """The frame of a message. Raises FrameError when it is larger than FRAME_BYTES_MAX, TypeError when it is
    not JSON."""
    body = json.dumps(message, separators=(",", ":")).encode()
    if len(body) > FRAME_BYTES_MAX:
        raise FrameError(f"frame of {len(body)} bytes; at most {FRAME_BYTES_MAX}")
    return HEADER.pack(len(body)) + body


def body_length(header: bytes) -> int:
    """The length in a frame's header. Raises FrameError when it is out of bounds."""
    (length,) = HEADER.unpack(header)
    if not 2 <= length <= FRAME_BYTES_MAX:
        raise FrameError(f"frame length {length} is out of bounds (2..{FRAME_BYTES_MAX})")
    return int(length)


def unpack(body: bytes) -> dict[str, Any]:
    """The message in a frame's body. Raises FrameError when it is not a JSON object."""
    try:
        message = json.loads(body)
    except ValueError as error:
        raise FrameError(f"frame is not JSON: {error}") from None
    if not isinstance(message, dict):
        raise FrameError(f"frame is a JSON {type(message).__name__}, not an object")
    return message


def send(sock: socket.socket, message: dict[str, Any]) -> None:
    """Sends one message; blocks until the kernel took it."""
    sock.sendall(pack(message))


def receive(sock: socket.socket) -> dict[str, Any] | None:
    """The next message, blocking; None when the peer closed between frames. Raises FrameError."""
    header = _exactly(sock, HEADER.size)
    if not header:
        return None
    if len(header) < HEADER.size:
        raise FrameError("connection closed inside a frame header")
    length = body_length(header)
    body = _exactly(sock, length)
    if len(body) < length:
        raise FrameError(f"connection closed after {len(body)} of {length} bytes")
    return unpack(body)


def _exactly(sock: socket.socket, length: int) -> bytes:
    parts = []
    missing = length
    while missing:
        part = sock.recv(min(missing, 1 << 16))
        if not part:
            break
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)
