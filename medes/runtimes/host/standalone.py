"""Instances without a host or an agent, for benchmarks and tests: blocking, one caller thread, the native contract."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medes.clock import Clock
from medes.errors import DeadlineExceededError, FunctionError, UnsupportedError
from medes.runtimes import manifest
from medes.runtimes.contracts import native
from medes.runtimes.host import spawn
from medes.runtimes.instance import wire

LOAD_TIMEOUT_S = 120.0


class StandaloneInstance:
    """One warm process of a function. Not thread-safe; close() ends the process and its children."""

    def __init__(
        self,
        spec: manifest.FunctionSpec,
        instance_id: str,
        log_path: Path | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Starts the process; load() waits for it, so that several can load side by side. Raises unsupported for a function
        of another contract: those need the host's event loop."""
        if spec.contract != manifest.CONTRACT_DEFAULT:
            raise UnsupportedError(
                f"only the function host runs the contract {spec.contract!r}",
                object=spec.name,
                hint="medes function deploy",
            )
        self.spec = spec
        self.instance_id = instance_id
        self._clock = clock or Clock()
        self._begun_s = self._clock.now_s()
        command, self._sock = native.command_of(spec, instance_id)
        try:
            self._spawned = spawn.spawn(command, spec, log_path)
        except BaseException:
            self._sock.close()
            raise
        self._requests = 0
        self.load_ms = 0.0
        self.start_ms = 0.0

    @property
    def pid(self) -> int:
        """The root process; its descendants belong to the sandbox too."""
        return self._spawned.pid

    def load(self) -> None:
        """Waits until the function is imported. Sets start_ms (process start to ready) and load_ms (the import).
        Raises HandlerError, FunctionError, DeadlineExceededError."""
        frame = self._receive(LOAD_TIMEOUT_S)
        try:
            ready = native.check_ready(self.spec, frame)
        except FunctionError as error:
            error.hint = error.hint or self._spawned.log_tail().strip()[-500:]
            raise
        self.load_ms = ready.load_us / 1000
        self.start_ms = (self._clock.now_s() - self._begun_s) * 1000

    def invoke(self, event: Any = None, timeout_s: float | None = None) -> Any:
        """The function's answer to an event (default: that of function.toml). Raises HandlerError when it raises."""
        timeout_s = timeout_s or self.spec.timeout_s
        event = self.spec.event if event is None else event
        return self._call({"op": "invoke", "event": event, "timeout_ms": timeout_s * 1000}, timeout_s)

    def run_hooks(self, phase: str) -> int:
        """Runs the function's "before_snapshot" or "after_restore" hooks; says how many there were."""
        return int(self._call({"op": "hook", "phase": phase}, self.spec.timeout_s))

    def _call(self, message: dict[str, Any], timeout_s: float) -> Any:
        self._requests += 1
        request_id = f"{self.instance_id}-{self._requests}"
        frame = native.pack(self.spec, {**message, "id": request_id})
        self._sock.settimeout(timeout_s)
        try:
            self._sock.sendall(frame)
        except OSError as error:
            raise FunctionError(
                f"cannot reach instance {self.instance_id}: {error}", object=self.spec.name
            ) from error
        answer = self._receive(timeout_s)
        if answer is None:
            raise FunctionError(
                f"instance {self.instance_id} ended", object=self.spec.name, hint=self._spawned.log_tail()
            )
        return native.result_of(self.spec, answer, request_id)

    def _receive(self, timeout_s: float) -> dict[str, Any] | None:
        self._sock.settimeout(timeout_s)
        try:
            return wire.receive(self._sock)
        except TimeoutError:
            raise DeadlineExceededError(
                f"instance {self.instance_id} did not answer within {timeout_s:g} s", object=self.spec.name
            ) from None
        except ConnectionError:
            return None
        except wire.FrameError as error:
            raise FunctionError(f"instance {self.instance_id}: {error}", object=self.spec.name) from error

    def close(self) -> None:
        """Kills the process and its children. May be called again."""
        self._sock.close()
        self._spawned.kill()


@contextlib.contextmanager
def running_instances(
    function: manifest.FunctionSpec | Path | str, n: int, seed: int = 0, warm_requests: int = 3
) -> Iterator[list[StandaloneInstance]]:
    """n loaded instances of a function folder, each warmed with its own inputs (from `seed`) and then with the
    function's event. They end when the block is left. Raises what load(), invoke() and manifest.load() raise."""
    spec = function if isinstance(function, manifest.FunctionSpec) else manifest.load(function)
    with contextlib.ExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="medes-instances-")))
        instances = []
        for number in range(n):
            instance_id = f"{spec.name}-{number}"
            instance = StandaloneInstance(spec, instance_id, logs / f"{instance_id}.log")
            stack.callback(instance.close)
            instances.append(instance)
        for number, instance in enumerate(instances):
            instance.load()
            for request in range(warm_requests):
                instance.invoke(spec.seeded_event(seed * 1_000_003 + number * 1009 + request + 2))
            instance.invoke()
        yield instances
