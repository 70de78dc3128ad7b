"""The `native` contract: a Python module with a handler of AWS Lambda's signature, and frames of JSON on an inherited socket.

The other end is `medes.runtimes.instance.process`, the frames are those of `medes.runtimes.instance.wire`.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import sys
from pathlib import Path
from typing import Any

from medes.errors import FunctionError, InvalidArgumentError, LimitExceededError
from medes.runtimes.contracts.contract import (
    Answer,
    Command,
    Contract,
    HandlerError,
    Instance,
    InstanceFailedError,
    Phase,
    Ready,
)
from medes.runtimes.instance import wire
from medes.runtimes.manifest import FunctionSpec

READ_BUFFER_BYTES = 1 << 20
_IDENTIFIER_PATH = r"[^\W\d]\w*(?:\.[^\W\d]\w*)*"
_HANDLER = re.compile(rf"{_IDENTIFIER_PATH}:{_IDENTIFIER_PATH}")


class NativeContract(Contract):
    """See medes.runtimes.contracts.contract."""

    @classmethod
    def check(cls, spec: FunctionSpec) -> None:
        if spec.options:
            raise _wrong(spec, f"'options' has {next(iter(spec.options))!r}, and this contract knows none")
        if not _HANDLER.fullmatch(spec.handler):
            raise _wrong(spec, f"'handler' is {spec.handler!r}", 'write "module:callable"')
        module = spec.handler.partition(":")[0]
        first = module.partition(".")[0]
        # Only that it is there, so that a typing error shows before anything is started.
        found = (spec.folder / first).is_dir() or any(
            next(spec.folder.glob(pattern), None) for pattern in (f"{first}.py", f"{first}.*.so")
        )
        if not found:
            raise _wrong(spec, f"'handler' names module {module!r}, which is not in {spec.folder}")

    @classmethod
    def open(cls, spec: FunctionSpec, instance_id: str, folder: Path) -> Instance:
        return NativeInstance(spec, instance_id)


class NativeInstance(Instance):
    """Has no file: its connection is a pair of sockets, which ends with either side."""

    def __init__(self, spec: FunctionSpec, instance_id: str) -> None:
        self._spec = spec
        self._instance_id = instance_id
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def launch(self) -> Command:
        command, ours = command_of(self._spec, self._instance_id)
        try:
            self._reader, self._writer = await asyncio.open_connection(sock=ours, limit=READ_BUFFER_BYTES)
        except BaseException:
            ours.close()
            for file in command.files:
                os.close(file)
            raise
        return command

    async def ready(self) -> Ready:
        try:
            frame = await self._frame()
        except (ConnectionError, wire.FrameError) as error:
            raise FunctionError(f"the instance failed: {error}", object=self._instance_id) from error
        return check_ready(self._spec, frame)

    async def invoke(self, event: Any, request_id: str, timeout_s: float) -> Answer:
        message = {"op": "invoke", "id": request_id, "event": event, "timeout_ms": timeout_s * 1000}
        answer = await self._call(message)
        return Answer(result_of(self._spec, answer, request_id), float(answer.get("handler_us", 0)) / 1000)

    async def run_hooks(self, phase: Phase, timeout_s: float) -> int:
        request_id = f"hook-{phase}"  # one at a time, so any name serves
        answer = await self._call({"op": "hook", "id": request_id, "phase": phase})
        return int(result_of(self._spec, answer, request_id))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.transport.abort()

    async def _call(self, message: dict[str, Any]) -> dict[str, Any]:
        frame = pack(self._spec, message)
        if self._writer is None or self._writer.is_closing():
            raise InstanceFailedError("the instance ended", object=self._instance_id, begun=False)
        try:
            self._writer.write(frame)
            await self._writer.drain()
            answer = await self._frame()
        except (ConnectionError, wire.FrameError) as error:
            raise InstanceFailedError(
                f"the instance failed: {error}", object=self._instance_id, begun=True
            ) from error
        if answer is None:
            raise InstanceFailedError("the instance ended", object=self._instance_id, begun=True)
        return answer

    async def _frame(self) -> dict[str, Any] | None:
        """The next one; None when the other end closed between frames. Raises FrameError."""
        assert self._reader is not None
        try:
            header = await self._reader.readexactly(wire.HEADER.size)
        except asyncio.IncompleteReadError as error:
            if error.partial:
                raise wire.FrameError("connection closed inside a frame header") from None
            return None
        except ConnectionError:
            return None
        try:
            body = await self._reader.readexactly(wire.body_length(header))
        except asyncio.IncompleteReadError as error:
            raise wire.FrameError(f"connection closed after {len(error.partial)} bytes of a frame") from None
        return wire.unpack(body)


def command_of(spec: FunctionSpec, instance_id: str) -> tuple[Command, socket.socket]:
    """What starts an instance, and the caller's end of its socket. Raises FunctionError."""
    try:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    except OSError as error:
        raise FunctionError(f"cannot start an instance: {error}", object=spec.name) from error
    file = theirs.detach()
    identity = {
        "fd": file,
        "name": spec.name,
        "instance": instance_id,
        "handler": spec.handler,
        "folder": str(spec.folder),
        "tenant": spec.tenant,
        "memory_mb": spec.memory_mb,
    }
    arguments = (sys.executable, "-P", "-m", "medes.runtimes.instance.process", json.dumps(identity))
    return Command(arguments, files=(file,)), ours


def pack(spec: FunctionSpec, message: dict[str, Any]) -> bytes:
    """The frame of a message. Raises limit_exceeded when it is too large, invalid_argument when its event is not JSON."""
    try:
        return wire.pack(message)
    except wire.FrameError as error:
        raise LimitExceededError(f"the event is too large: {error}", object=spec.name) from None
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidArgumentError(f"the event is not JSON: {error}", object=spec.name) from None


def result_of(spec: FunctionSpec, answer: dict[str, Any], request_id: str) -> Any:
    """The handler's result. Raises HandlerError when it failed, InstanceFailedError for an answer to another request."""
    if answer.get("id") != request_id:
        raise InstanceFailedError(
            f"answered {answer.get('id')!r} instead of {request_id!r}", object=spec.name, begun=True
        )
    if "error" in answer:
        raise HandlerError(spec.name, answer["error"])
    return answer.get("result")


def check_ready(spec: FunctionSpec, frame: dict[str, Any] | None) -> Ready:
    """What an instance's first frame says. Raises HandlerError when its code failed to load, FunctionError when
    the process ended."""
    if frame is None:
        raise FunctionError("the instance ended while it loaded", object=spec.name)
    if "error" in frame:
        raise HandlerError(spec.name, frame["error"])
    numbers = (int(frame.get(key, 0)) for key in ("load_us", "restore_hooks", "snapshot_hooks"))
    return Ready(*numbers)


def _wrong(spec: FunctionSpec, message: str, hint: str = "") -> InvalidArgumentError:
    return InvalidArgumentError(message, object=str(spec.path), hint=hint or "see docs/functions.md")
