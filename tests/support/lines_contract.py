"""A function contract as somebody else would write it: a line of JSON each way, over a socket in the instance's folder.

`handler` is a Python file, `options = { call = "name" }` the callable in it. It knows nothing of the project but its public
parts; the host loads it from a distribution of its own.
"""

from __future__ import annotations

import asyncio
import json
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
from medes.runtimes.manifest import FunctionSpec

LINE_BYTES_MAX = 2 << 20
# What runs in the sandbox: path of the socket, file, callable.
PROGRAM = """
import json, runpy, socket, sys

def answer(call):
    try:
        return {"result": call()}
    except Exception as error:
        return {"error": {"type": type(error).__name__, "message": str(error)}}

stream = socket.socket(socket.AF_UNIX)
stream.connect(sys.argv[1])
lines = stream.makefile("rw", encoding="utf-8", newline="\\n")

def say(message):
    lines.write(json.dumps(message) + "\\n")
    lines.flush()

code = {}
loaded = answer(lambda: code.update(runpy.run_path(sys.argv[2])) or code[sys.argv[3]] and None)
say(loaded)
hooks = code.get("hooks", {})
if "error" in loaded:
    sys.exit(1)
for line in lines:
    message = json.loads(line)
    if "phase" in message:
        say(answer(lambda: len([hook() for hook in hooks.get(message["phase"], [])])))
    else:
        say(answer(lambda: code[sys.argv[3]](message["event"])))
"""


class LinesContract(Contract):
    @classmethod
    def check(cls, spec: FunctionSpec) -> None:
        if unknown := sorted(set(spec.options) - {"call"}):
            raise InvalidArgumentError(f"no option {unknown[0]!r}", object=str(spec.path), hint="call = …")
        if not (spec.folder / spec.handler).is_file():
            raise InvalidArgumentError(
                f"'handler' names no file: {spec.handler!r}", object=str(spec.path), hint="a Python file"
            )

    @classmethod
    def open(cls, spec: FunctionSpec, instance_id: str, folder: Path) -> Instance:
        return LinesInstance(spec, folder / "socket")


class LinesInstance(Instance):
    def __init__(self, spec: FunctionSpec, path: Path) -> None:
        self._spec = spec
        self._path = path
        self._server: asyncio.Server | None = None
        self._connected = asyncio.Event()
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def launch(self) -> Command:
        self._server = await asyncio.start_unix_server(self._accept, str(self._path), limit=LINE_BYTES_MAX)
        call = str(self._spec.options.get("call", "handle"))
        return Command((sys.executable, "-c", PROGRAM, str(self._path), self._spec.handler, call))

    async def ready(self) -> Ready:
        await self._connected.wait()  # for ever, if need be: the host knows when to end it
        message = await self._line(begun=False)
        if "error" in message:
            raise HandlerError(self._spec.name, message["error"])
        return Ready(restore_hooks=1, snapshot_hooks=1)  # how many there are is its own affair

    async def invoke(self, event: Any, request_id: str, timeout_s: float) -> Answer:
        return Answer(await self._call({"event": event}))

    async def run_hooks(self, phase: Phase, timeout_s: float) -> int:
        return int(await self._call({"phase": phase}))

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
        if self._writer is not None:
            self._writer.transport.abort()

    async def _call(self, message: dict[str, Any]) -> Any:
        line = json.dumps(message).encode() + b"\n"
        if len(line) > LINE_BYTES_MAX:
            raise LimitExceededError(f"a line has at most {LINE_BYTES_MAX} bytes", object=self._spec.name)
        if self._writer is None or self._writer.is_closing():
            raise InstanceFailedError("it has gone", object=self._spec.name, begun=False)
        try:
            self._writer.write(line)
            await self._writer.drain()
        except ConnectionError as error:
            raise InstanceFailedError(f"it has gone: {error}", object=self._spec.name, begun=True) from error
        answer = await self._line(begun=True)
        if "error" in answer:
            raise HandlerError(self._spec.name, answer["error"])
        return answer["result"]

    async def _line(self, begun: bool) -> dict[str, Any]:
        assert self._reader is not None
        try:
            line = await self._reader.readuntil(b"\n")
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            if not begun:
                raise FunctionError("it ended while it loaded", object=self._spec.name) from error
            raise InstanceFailedError(f"it has gone: {error}", object=self._spec.name, begun=True) from error
        message: dict[str, Any] = json.loads(line)
        return message

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._connected.set()
