"""Heads of HTTP/1.1: what one end writes the other reads, and what is refused."""

from __future__ import annotations

import asyncio

import pytest

from medes import http1
from medes.errors import InvalidArgumentError, LimitExceededError

HEAD_BYTES = 1000


def stream(data: bytes) -> asyncio.StreamReader:
    reader = asyncio.StreamReader(limit=HEAD_BYTES)
    reader.feed_data(data)
    reader.feed_eof()
    return reader


async def test_a_request_is_read_as_it_was_written() -> None:
    data = http1.request("POST", "/a%20b", b"{}")
    assert await http1.read_request(stream(data), 2) == ("POST", "/a%20b", b"{}")
    with pytest.raises(LimitExceededError):
        await http1.read_request(stream(data), 1)


async def test_an_answer_is_read_as_it_was_written() -> None:
    reader = stream(http1.response(404, b"[1]"))
    assert await http1.read_status(reader) == (404, 3)
    assert await reader.read() == b"[1]"


async def test_an_answer_of_another_server_need_not_say_how_long_it_is() -> None:
    head = b"HTTP/1.0 204\r\nSet-Cookie: a\r\nSet-Cookie: b\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert await http1.read_status(stream(head)) == (204, 0)


@pytest.mark.parametrize("read", [http1.read_status, lambda reader: http1.read_request(reader, 10)])
async def test_a_head_has_a_longest_size(read) -> None:
    with pytest.raises(LimitExceededError):
        await read(stream(b"X: y\r\n" * HEAD_BYTES + b"\r\n"))
    with pytest.raises(asyncio.IncompleteReadError):
        await read(stream(b"X: y\r\n"))


@pytest.mark.parametrize(
    "head",
    [
        b"\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/2.0\r\nHost: h\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET  / HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\n\nContent-Length: 2\r\n\r\n{}",
        b"GET / HTTP/1.1\r\nHost: h\r\nA: b\r\n\tc\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nA: b\x00\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\n\r\n",
    ],
)
async def test_what_is_no_request(head: bytes) -> None:
    with pytest.raises(InvalidArgumentError):
        await http1.read_request(stream(head), 10)


@pytest.mark.parametrize(
    "head",
    [b"\r\n\r\n", b"HTTP/1.1 OK\r\n\r\n", b"HTTP/2.0 200 OK\r\n\r\n", b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"],
)
async def test_what_is_no_answer(head: bytes) -> None:
    with pytest.raises(InvalidArgumentError):
        await http1.read_status(stream(head))
