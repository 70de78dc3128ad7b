"""The function host's control socket: HTTP/1.1 with JSON over a unix socket, one request per connection.

    GET    /functions                       what is deployed
    POST   /functions                       {"folder": …, "instances": …}   deploy
    DELETE /functions/NAME                  end its instances
    POST   /functions/NAME/invocations      {"event": …, "instance_id": …, "timeout_s": …}
    POST   /hooks/before-dedup              {"sandbox_id": …}   the agent is about to dedup an instance
    POST   /hooks/after-restore             {"sandbox_id": …}   the agent restored an instance

Failures are {"error": {"code", "message", "object", "hint"}} with an entry of the catalogue. The socket's mode keeps
it to its owner: who may write to it may run code here.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from medes import http1
from medes.errors import (
    DeadlineExceededError,
    HostUnreachableError,
    InvalidArgumentError,
    IoError,
    LimitExceededError,
    MedesError,
    NotFoundError,
    PermissionDeniedError,
    from_code,
)
from medes.rpc.address import clear_stale_socket
from medes.runtimes import manifest
from medes.runtimes.contracts.contract import HandlerError
from medes.runtimes.host.host import FunctionHost
from medes.runtimes.instance import wire

log = logging.getLogger(__name__)
HEAD_BYTES_MAX = 16 << 10
BODY_BYTES_MAX = wire.FRAME_BYTES_MAX
REQUEST_READ_TIMEOUT_S = 30.0
CONNECTIONS_MAX = 1024
CALL_TIMEOUT_S = manifest.TIMEOUT_S_MAX + 60


class ControlServer:
    """Serves one FunctionHost. Belongs to the host's event loop."""

    def __init__(self, host: FunctionHost, path: Path) -> None:
        self._host = host
        self._path = path
        self._server: asyncio.Server | None = None
        self._connections = 0

    async def start(self) -> None:
        """Listens. Raises already_exists when another host listens there, io when the socket cannot be made."""
        clear_stale_socket(self._path)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._server = await asyncio.start_unix_server(self._serve, str(self._path), limit=HEAD_BYTES_MAX)
            self._path.chmod(0o600)
        except OSError as error:
            raise IoError(f"cannot listen: {error.strerror}", object=str(self._path)) from error

    async def close(self) -> None:
        """Stops listening and removes the socket. Idempotent."""
        if self._server is not None:
            self._server.close()
            self._server = None
            self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        try:
            if self._connections > CONNECTIONS_MAX:
                raise LimitExceededError(f"more than {CONNECTIONS_MAX} connections", object=str(self._path))
            async with asyncio.timeout(REQUEST_READ_TIMEOUT_S):
                method, target, body = await _read_request(reader)
            status, answer = 200, await self._answer(method, target, body)
        except HandlerError as error:
            status, answer = 500, {"error": _error_of(error), "function_error": _function_error_of(error)}
        except MedesError as error:
            status, answer = (404 if isinstance(error, NotFoundError) else 400), {"error": _error_of(error)}
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError):
            status, answer = 400, {"error": _error_of(InvalidArgumentError("the request is not complete"))}
        except Exception as error:
            log.exception("control request failed")
            status, answer = 500, {"error": _error_of(MedesError(f"{type(error).__name__}: {error}"))}
        finally:
            self._connections -= 1
        with contextlib.suppress(ConnectionError):
            writer.write(http1.response(status, json.dumps(answer).encode()))
            await writer.drain()
        writer.close()

    async def _answer(self, method: str, target: str, body: dict[str, Any]) -> Any:
        parts = [unquote(part) for part in target.strip("/").split("/")]
        match method, *parts:
            case "GET", "functions":
                return describe(self._host)
            case "POST", "functions":
                spec = manifest.load(_text(body, "folder"))
                count = body.get("instances") or spec.instances or 1
                if type(count) is not int:
                    raise InvalidArgumentError("'instances' must be a whole number", object="instances")
                await self._host.deploy(spec, count)
                return next(row for row in describe(self._host)["functions"] if row["name"] == spec.name)
            case "DELETE", "functions", name:
                await self._host.remove(name)
                return {}
            case "POST", "functions", name, "invocations":
                timeout_s = body.get("timeout_s")
                if timeout_s is not None and (
                    type(timeout_s) not in (int, float) or not 0 < timeout_s <= 900
                ):
                    raise InvalidArgumentError(
                        "'timeout_s' must be a number of seconds, 1 to 900", object="timeout_s"
                    )
                invocation = await self._host.invoke(
                    name, body.get("event"), instance_id=body.get("instance_id") or "", timeout_s=timeout_s
                )
                return dataclasses.asdict(invocation)
            case "POST", "hooks", "before-dedup":
                return {"hooks": await self._host.run_hooks(_text(body, "sandbox_id"), "before_snapshot")}
            case "POST", "hooks", "after-restore":
                return {"hooks": await self._host.run_hooks(_text(body, "sandbox_id"), "after_restore")}
        raise NotFoundError(f"nothing at {method} {target[:200]}", object=str(self._path))


def describe(host: FunctionHost) -> dict[str, Any]:
    """What is deployed, as `medes function ls` shows it."""
    return {
        "nodes": sorted(host.nodes),
        "functions": [
            {
                "name": function.spec.name,
                "folder": str(function.spec.folder),
                "tenant": function.spec.tenant,
                "contract": function.spec.contract,
                "memory_mb": function.spec.memory_mb,
                "lost": function.lost,
                "instances": [
                    {
                        "instance_id": instance.instance_id,
                        "node_id": instance.node_id,
                        "pid": instance.pid,
                        "state": "running" if instance.busy else instance.state.label,
                        "requests": instance.requests,
                        "cold_start_ms": round(instance.cold_start_ms, 3),
                        "kept_bytes": instance.sandbox.kept_bytes if instance.sandbox else 0,
                        "warm_bytes": instance.sandbox.warm_bytes if instance.sandbox else 0,
                    }
                    for instance in function.instances
                ],
            }
            for function in sorted(host.functions.values(), key=lambda function: function.spec.name)
        ],
    }


async def call(path: Path, method: str, target: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """One request to a host's control socket. Raises the error it answers, host_unreachable when nobody listens,
    deadline_exceeded after the longest time an invocation may take."""
    try:
        async with asyncio.timeout(CALL_TIMEOUT_S):
            reader, writer = await asyncio.open_unix_connection(str(path), limit=HEAD_BYTES_MAX)
            try:
                writer.write(http1.request(method, target, json.dumps(body or {}).encode()))
                await writer.drain()
                _, length = await http1.read_status(reader)
                if length > BODY_BYTES_MAX:
                    raise LimitExceededError(f"an answer of {length} bytes; at most {BODY_BYTES_MAX}")
                answer = json.loads(await reader.readexactly(length))
            finally:
                writer.close()
    except PermissionError:
        raise PermissionDeniedError(
            "this user may not use the socket", object=str(path), hint="be the function host's user or root"
        ) from None
    except TimeoutError:
        raise DeadlineExceededError("the function host did not answer", object=str(path)) from None
    except (OSError, asyncio.IncompleteReadError, ValueError) as error:
        raise HostUnreachableError(
            f"no function host answers: {getattr(error, 'strerror', None) or error}",
            object=str(path),
            hint="start one: medes function serve",
        ) from error
    if "function_error" in answer:
        raise HandlerError(str(answer["error"]["object"]), answer["function_error"])
    if "error" in answer:
        raise from_code(**answer["error"])
    return answer  # type: ignore[no-any-return]


def function_target(name: str, *rest: str) -> str:
    """The path of a function, escaped."""
    return "/".join(["/functions", quote(name, safe=""), *rest])


async def _read_request(reader: asyncio.StreamReader) -> tuple[str, str, dict[str, Any]]:
    method, target, data = await http1.read_request(reader, BODY_BYTES_MAX)
    try:
        body = json.loads(data) if data else {}
    except ValueError as error:
        raise InvalidArgumentError(f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise InvalidArgumentError("the body must be a JSON object")
    return method, target, body


def _text(body: dict[str, Any], key: str) -> str:
    value = body.get(key)
    if not isinstance(value, str) or not value:
        raise InvalidArgumentError(f"{key!r} must be a string", object=key)
    return value


def _error_of(error: MedesError) -> dict[str, str]:
    return {"code": error.code, "message": error.message, "object": error.object, "hint": error.hint}


def _function_error_of(error: HandlerError) -> dict[str, Any]:
    return {"type": error.type, "message": error.error_message, "traceback": error.traceback}
