"""Hooks around dedup state: a POST to the function host's unix socket, so that functions drop and refresh what does
not outlive sleep (clocks, connections, caches).

    POST /hooks/before-dedup    {"sandbox_id": …, "function": …}
    POST /hooks/after-restore   {"sandbox_id": …, "function": …, "dedup_seconds": …}

Any 2xx is success, 404 means that the host has no such hook. One that fails or is late fails neither op, each of which waits for it at most HOOK_TIMEOUT_S.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any, Literal

from medes import http1
from medes.agent.sandboxes.sandbox import SandboxEntry
from medes.agent.sandboxes.users import owner_of
from medes.errors import DeadlineExceededError, FunctionError, MedesError
from medes.rpc.user_socket import peer_of

HOOK_TIMEOUT_S = 2.0
HOOKS_PATH = "/hooks/"
_RESPONSE_BYTES_MAX = 64 << 10


Phase = Literal["before-dedup", "after-restore"]


async def call(
    hook_address: str,
    phase: Phase,
    body: dict[str, Any],
    timeout_s: float = HOOK_TIMEOUT_S,
    *,
    owner: int | None = None,
) -> None:
    """Raises deadline_exceeded or function when the host did not take it; `owner`: the only user who may listen there."""
    socket_path = hook_address.removeprefix("unix:")
    try:
        status = await asyncio.wait_for(
            _post(socket_path, HOOKS_PATH + phase, json.dumps(body).encode(), owner), timeout_s
        )
    except TimeoutError:
        raise DeadlineExceededError(f"the {phase} hook did not answer", object=hook_address) from None
    except (OSError, ValueError, MedesError, asyncio.IncompleteReadError) as error:
        raise FunctionError(f"the {phase} hook: {error}", object=hook_address) from error
    if not 200 <= status < 300 and status != 404:
        raise FunctionError(f"the {phase} hook answered {status}", object=hook_address)


async def _post(socket_path: str, path: str, body: bytes, owner: int | None) -> int:
    reader, writer = await asyncio.open_unix_connection(socket_path, limit=_RESPONSE_BYTES_MAX)
    try:
        if owner is not None and peer_of(writer.get_extra_info("socket")).uid != owner:
            raise ValueError(f"who listens there is not user {owner}")
        writer.write(http1.request("POST", path, body))
        await writer.drain()
        return (await http1.read_status(reader))[0]
    finally:
        writer.close()


async def try_call(entry: SandboxEntry, phase: Phase, body: dict[str, Any]) -> str:
    """The same for a sandbox, without raising: the empty string, or what went wrong. Each call that is late halves what
    the next may take: a host that never answers holds the ops of others for twice HOOK_TIMEOUT_S in all."""
    spec = entry.spec
    timeout_s = HOOK_TIMEOUT_S / 2**entry.hooks_late
    try:
        await call(spec.hook_address, phase, body, timeout_s, owner=owner_of(spec.sandbox_id))
    except DeadlineExceededError as error:
        entry.hook_late()
        return str(error)
    except MedesError as error:
        return str(error)
    entry.hook_answered()
    return ""
