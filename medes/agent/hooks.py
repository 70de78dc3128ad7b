"""The after-restore hook: a POST to the function host's unix socket, so that functions refresh clocks and connections.

    POST /hooks/after-restore   {"sandbox_id": …, "function": …, "dedup_seconds": …}

Any 2xx is success. A hook that fails or is late never fails the restore; the restore's answer waits for it at most
HOOK_TIMEOUT_S.
"""

from __future__ import annotations

import asyncio
import json

from medes.errors import DeadlineExceededError, FunctionError, MedesError

HOOK_TIMEOUT_S = 2.0
HOOK_PATH = "/hooks/after-restore"
_RESPONSE_BYTES_MAX = 64 << 10


async def call_after_restore(
    hook_address: str, sandbox_id: str, function: str, dedup_seconds: float, timeout_s: float = HOOK_TIMEOUT_S
) -> None:
    """Raises deadline_exceeded or function when the host did not take it."""
    body = json.dumps(
        {"sandbox_id": sandbox_id, "function": function, "dedup_seconds": dedup_seconds}
    ).encode()
    try:
        status = await asyncio.wait_for(_post(hook_address.removeprefix("unix:"), body), timeout_s)
    except TimeoutError:
        raise DeadlineExceededError("the after-restore hook did not answer", object=hook_address) from None
    except (OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
        raise FunctionError(f"the after-restore hook: {error}", object=hook_address) from error
    if not 200 <= status < 300:
        raise FunctionError(f"the after-restore hook answered {status}", object=hook_address)


async def _post(path: str, body: bytes) -> int:
    reader, writer = await asyncio.open_unix_connection(path, limit=_RESPONSE_BYTES_MAX)
    try:
        head = (
            f"POST {HOOK_PATH} HTTP/1.1\r\nHost: hooks\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        writer.write(head.encode() + body)
        await writer.drain()
        line = await reader.readline()
        fields = line.split(b" ", 2)
        if len(fields) < 2 or not fields[0].startswith(b"HTTP/1."):
            raise ValueError("not an HTTP response")
        return int(fields[1])
    finally:
        writer.close()


async def try_after_restore(hook_address: str, sandbox_id: str, function: str, dedup_seconds: float) -> str:
    """The same without raising: the empty string, or what went wrong."""
    try:
        await call_after_restore(hook_address, sandbox_id, function, dedup_seconds)
    except MedesError as error:
        return str(error)
    return ""
