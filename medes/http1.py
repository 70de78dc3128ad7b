"""HTTP/1.1 over streams, one request a connection: h11 parses and writes the heads, bounds and stricter rules stand here.

A head may be as long as the StreamReader's `limit`. Whoever calls sets the time-outs.
"""

from __future__ import annotations

import asyncio
import re
from http import HTTPStatus

import h11

from medes.errors import InvalidArgumentError, LimitExceededError

_LENGTHS = re.compile(rb"^content-length:[ \t]*(.*?)[ \t]*\r$", re.IGNORECASE | re.MULTILINE)
_LENGTH_DIGITS_MAX = 18
_FOLDS = (b"\r\n ", b"\r\n\t")


def request(method: str, target: str, body: bytes) -> bytes:
    """The bytes of a request whose body is JSON. `target` is escaped already."""
    head = h11.Request(method=method, target=target, headers=[("Host", "medes"), *_of_json(body)])
    return h11.Connection(h11.CLIENT).send(head) + body


def response(status: int, body: bytes) -> bytes:
    """The bytes of an answer whose body is JSON."""
    reason = HTTPStatus(status).phrase.encode()
    head = h11.Response(status_code=status, reason=reason, headers=_of_json(body))
    return h11.Connection(h11.SERVER).send(head) + body


async def read_request(reader: asyncio.StreamReader, body_bytes_max: int) -> tuple[str, str, bytes]:
    """Method, target and body of the next request. Raises limit_exceeded for a head or a body that is too long,
    invalid_argument for what is no HTTP/1.x or leaves open where the body ends, IncompleteReadError, OSError."""
    head = await _read_head(reader)
    # A length that is no number is one that is out of bounds; h11 names no cause.
    lengths = _LENGTHS.findall(head)
    for length in lengths:
        if not length.isdigit() or len(length) > _LENGTH_DIGITS_MAX or int(length) > body_bytes_max:
            raise LimitExceededError(f"Content-Length {length[:20]!r}; at most {body_bytes_max}")
    if any(fold in head for fold in _FOLDS):
        raise InvalidArgumentError("a header goes on in the next line")
    message = _parse(head, h11.SERVER)
    assert isinstance(message, h11.Request)
    headers = dict(message.headers)
    # Which of two counts is where readers of HTTP differ, and nobody here has a reason to send two.
    if len(headers) < len(message.headers) or len(lengths) > 1:
        raise InvalidArgumentError("a header is there twice")
    if b"transfer-encoding" in headers:
        raise InvalidArgumentError("a body has a Content-Length here, and no Transfer-Encoding")
    body = await reader.readexactly(int(headers.get(b"content-length", 0)))
    return message.method.decode(), message.target.decode(), body


async def read_status(reader: asyncio.StreamReader) -> tuple[int, int]:
    """Status of the answer that comes, and how long its body is by its Content-Length (0 without one). Raises
    limit_exceeded for a head that is too long, invalid_argument for what is no HTTP/1.x, IncompleteReadError, OSError."""
    message = _parse(await _read_head(reader), h11.CLIENT)
    assert isinstance(message, h11.Response | h11.InformationalResponse)
    return message.status_code, int(dict(message.headers).get(b"content-length", 0))


def _of_json(body: bytes) -> list[tuple[str, str]]:
    return [
        ("Content-Type", "application/json"),
        ("Content-Length", str(len(body))),
        ("Connection", "close"),
    ]


async def _read_head(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError:
        raise LimitExceededError("the HTTP head is too long") from None


def _parse(
    head: bytes, role: type[h11.CLIENT | h11.SERVER]
) -> h11.Request | h11.Response | h11.InformationalResponse:
    connection = h11.Connection(role, max_incomplete_event_size=len(head))
    connection.receive_data(head)
    try:
        message = connection.next_event()
    except h11.RemoteProtocolError as error:
        raise InvalidArgumentError(f"not HTTP/1.1: {error}") from None
    assert isinstance(message, h11.Request | h11.Response | h11.InformationalResponse)
    # h11 takes bare line feeds for ends of lines: the head that it saw may end before the one that was read.
    if connection.trailing_data[0] or not message.http_version.startswith(b"1."):
        raise InvalidArgumentError("not HTTP/1.1")
    return message
