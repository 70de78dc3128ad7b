"""One instance as the function host holds it: its process, the asyncio end of its socket, what the agent said."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from medes.errors import DeadlineExceededError, FunctionError
from medes.faas import answers, spawn, wire
from medes.faas.manifest import FunctionSpec
from medes.types import Sandbox, SandboxState

LOAD_TIMEOUT_S = 120.0
READ_BUFFER_BYTES = 1 << 20


class HostedInstance:
    """Belongs to one event loop. `busy` is the host's reservation: one request at a time."""

    def __init__(self, spec: FunctionSpec, instance_id: str, node_id: str) -> None:
        self.spec = spec
        self.instance_id = instance_id
        self.node_id = node_id
        self.busy = True
        self.finishing = False  # busy, but the request is answered
        self.state = SandboxState.WARM
        self.sandbox: Sandbox | None = None
        self.requests = 0
        self.load_ms = 0.0
        self.cold_start_ms = 0.0
        self.restore_hooks = 0
        self.last_used_s = time.monotonic()
        self.exited = False
        self.snapshot_hooks = 0
        self._spawned: spawn.Spawned | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._exchange = asyncio.Lock()
        self._pidfd = -1

    @property
    def pid(self) -> int:
        """The root process; 0 before start()."""
        return self._spawned.pid if self._spawned else 0

    async def start(self, log_path: Path | None, on_exit: Callable[[HostedInstance], None]) -> None:
        """Starts the process and waits until the function is loaded. on_exit is called once when the process ends
        by itself. Raises HandlerError, FunctionError, DeadlineExceededError; the process is gone then."""
        begun = time.perf_counter()
        self._spawned = spawn.spawn(self.spec, self.instance_id, log_path)
        try:
            self._reader, self._writer = await asyncio.open_connection(
                sock=self._spawned.sock, limit=READ_BUFFER_BYTES
            )
            frame = await self._receive(LOAD_TIMEOUT_S)
            ready = answers.check_ready(self.spec, frame, self.log_tail())
        except BaseException:
            self.kill()
            raise
        self.load_ms = ready.load_us / 1000
        self.restore_hooks, self.snapshot_hooks = ready.restore_hooks, ready.snapshot_hooks
        self.cold_start_ms = (time.perf_counter() - begun) * 1000
        self._watch_exit(on_exit)

    async def invoke(self, event: Any, request_id: str, timeout_s: float) -> tuple[Any, float]:
        """The handler's result and the milliseconds it ran. Raises HandlerError when it raised, FunctionError when
        the instance ended (InstanceFailedError: whether it had the request), DeadlineExceededError (the instance is ended then: it may never answer)."""
        message = {"op": "invoke", "id": request_id, "event": event, "timeout_ms": timeout_s * 1000}
        answer = await self._call(message, timeout_s)
        self.requests += 1
        result = answers.result_of(self.spec, answer, request_id)
        return result, float(answer.get("handler_us", 0)) / 1000

    async def run_hooks(self, phase: str, timeout_s: float = 10.0) -> int:
        """Runs the function's hooks of a phase; says how many there were. Raises as invoke() does."""
        request_id = f"{phase}-{time.monotonic_ns()}"
        answer = await self._call({"op": "hook", "id": request_id, "phase": phase}, timeout_s)
        return int(answers.result_of(self.spec, answer, request_id))

    def kill(self) -> None:
        """Ends the process and its children and reaps it. Blocks for the few milliseconds that takes; idempotent."""
        self.exited = True
        self._unwatch_exit()
        if self._writer is not None:
            self._writer.transport.abort()
        if self._spawned is not None:
            self._spawned.kill()

    def log_tail(self) -> str:
        """The end of what the instance wrote."""
        return self._spawned.log_tail() if self._spawned else ""

    async def _call(self, message: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        frame = wire.pack(message)
        async with self._exchange:
            if self.exited or self._writer is None:
                raise answers.InstanceFailedError("the instance ended", object=self.instance_id, begun=False)
            try:
                async with asyncio.timeout(timeout_s):
                    self._writer.write(frame)
                    await self._writer.drain()
                    answer = await self._read_frame()
            except TimeoutError:
                self.kill()
                raise DeadlineExceededError(
                    f"no answer within {timeout_s:g} s; the instance was ended", object=self.instance_id
                ) from None
            except (ConnectionError, wire.FrameError) as error:
                self.kill()
                raise answers.InstanceFailedError(
                    f"the instance failed: {error}", object=self.instance_id, begun=True
                ) from error
            except asyncio.CancelledError:
                # Its answer would be taken for that of the next request.
                self.kill()
                raise
        if answer is None:
            tail = self.log_tail()
            self.kill()
            raise answers.InstanceFailedError(
                "the instance ended", object=self.instance_id, hint=tail.strip()[-500:], begun=True
            )
        return answer

    async def _receive(self, timeout_s: float) -> dict[str, Any] | None:
        try:
            async with asyncio.timeout(timeout_s):
                return await self._read_frame()
        except TimeoutError:
            raise DeadlineExceededError(
                f"did not load within {timeout_s:g} s", object=self.instance_id
            ) from None
        except (ConnectionError, wire.FrameError) as error:
            raise FunctionError(f"the instance failed: {error}", object=self.instance_id) from error

    async def _read_frame(self) -> dict[str, Any] | None:
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

    def _watch_exit(self, on_exit: Callable[[HostedInstance], None]) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._pidfd = os.pidfd_open(self.pid)
            asyncio.get_running_loop().add_reader(self._pidfd, self._ended, on_exit)

    def _ended(self, on_exit: Callable[[HostedInstance], None]) -> None:
        self.kill()
        on_exit(self)

    def _unwatch_exit(self) -> None:
        if self._pidfd >= 0:
            with contextlib.suppress(RuntimeError):
                asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
