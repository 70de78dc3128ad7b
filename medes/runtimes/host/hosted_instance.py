"""One instance as the function host holds it: its process, its contract's end of it, what the agent said."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from medes import plugins
from medes.clock import Clock
from medes.errors import (
    DeadlineExceededError,
    FunctionError,
    InvalidArgumentError,
    LimitExceededError,
    MedesError,
)
from medes.plugins import Kind
from medes.runtimes.contracts.contract import (
    Contract,
    HandlerError,
    Instance,
    InstanceFailedError,
    Phase,
    Ready,
)
from medes.runtimes.host import spawn
from medes.runtimes.manifest import FunctionSpec
from medes.types import Sandbox, SandboxState

log = logging.getLogger(__name__)
LOAD_TIMEOUT_S = 120.0
HOOKS_TIMEOUT_S = 10.0  # as AWS Lambda at a restore
# What a process wrote before it ended may still be on its way to the contract.
LAST_WORDS_S = 1.0
T = TypeVar("T")
OnExit = Callable[["HostedInstance"], None]


class HostedInstance:
    """Belongs to one event loop. `busy` is the host's reservation: one request at a time."""

    def __init__(
        self, spec: FunctionSpec, instance_id: str, node_id: str, clock: Clock | None = None
    ) -> None:
        self._clock = clock or Clock()
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
        self.last_used_s = self._clock.now_s()
        self.exited = False
        self.snapshot_hooks = 0
        self._spawned: spawn.Spawned | None = None
        self._instance: Instance | None = None
        self._folder: Path | None = None
        self._exchange = asyncio.Lock()
        self._limit: asyncio.Timeout | None = None  # of the call under way
        self._on_exit: OnExit | None = None
        self._gone = False  # the process has ended by itself
        self._pidfd = -1

    @property
    def pid(self) -> int:
        """The root process; 0 before start()."""
        return self._spawned.pid if self._spawned else 0

    async def start(self, log_path: Path | None, folder: Path, on_exit: OnExit) -> None:
        """Starts the process and waits until the function is loaded. `folder` is made, and removed with the instance.
        on_exit is called once when the process ends by itself. Raises HandlerError, FunctionError, DeadlineExceededError
        and what the contract's launch() raises; the process is gone then."""
        begun_s = self._clock.now_s()
        try:
            folder.mkdir(mode=0o700, parents=True)
            self._folder = folder
            contract: type[Contract] = plugins.load(Kind.FUNCTION_CONTRACT, self.spec.contract)
            self._instance = contract.open(self.spec, self.instance_id, folder)
            ready = await self._load(self._instance, log_path)
        except BaseException:
            self.kill()
            raise
        self.load_ms = ready.load_us / 1000
        self.restore_hooks, self.snapshot_hooks = ready.restore_hooks, ready.snapshot_hooks
        self.cold_start_ms = (self._clock.now_s() - begun_s) * 1000
        self._on_exit = on_exit

    async def invoke(self, event: Any, request_id: str, timeout_s: float) -> tuple[Any, float]:
        """The handler's result and the milliseconds it ran. Raises HandlerError when it raised, invalid_argument or
        limit_exceeded for an event that cannot be sent, InstanceFailedError when the instance ended (and whether it had the
        request), DeadlineExceededError (the instance is ended then: it may never answer)."""
        answer = await self._call(lambda instance: instance.invoke(event, request_id, timeout_s), timeout_s)
        self.requests += 1
        return answer.result, answer.handler_ms

    async def run_hooks(self, phase: Phase, timeout_s: float = HOOKS_TIMEOUT_S) -> int:
        """Runs the function's hooks of a phase; says how many there were. Raises as invoke() does."""
        return await self._call(lambda instance: instance.run_hooks(phase, timeout_s), timeout_s)

    def kill(self) -> None:
        """Ends the process and its children and reaps it. Blocks for the few milliseconds that takes; idempotent."""
        self.exited = True
        self._unwatch_exit()
        if self._instance is not None:
            try:
                self._instance.close()
            except Exception:
                log.exception("%s could not be closed", self.instance_id)
        if self._spawned is not None:
            self._spawned.kill()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def log_tail(self) -> str:
        """The end of what the instance wrote."""
        return self._spawned.log_tail() if self._spawned else ""

    def _last_words(self) -> str:
        return self.log_tail().strip()[-500:]

    async def _load(self, instance: Instance, log_path: Path | None) -> Ready:
        try:
            async with asyncio.timeout(LOAD_TIMEOUT_S) as limit:
                self._limit = limit
                self._spawned = spawn.spawn(await instance.launch(), self.spec, log_path)
                self._watch_exit()
                ready = await instance.ready()
        except TimeoutError as error:
            if not limit.expired():
                raise self._misbehaved("start", error) from error
            if not self._gone:
                raise DeadlineExceededError(
                    f"did not load within {LOAD_TIMEOUT_S:g} s",
                    object=self.instance_id,
                    hint=self._last_words(),
                ) from None
        except MedesError as error:
            if isinstance(error, FunctionError) and not isinstance(error, HandlerError):
                error.hint = error.hint or self._last_words() or "it wrote nothing"
            raise
        except Exception as error:
            raise self._misbehaved("start", error) from error
        finally:
            self._limit = None
        if self._gone:
            raise FunctionError(
                "the instance ended while it loaded",
                object=self.spec.name,
                hint=self._last_words() or "it wrote nothing",
            )
        return ready

    async def _call(self, call: Callable[[Instance], Awaitable[T]], timeout_s: float) -> T:
        async with self._exchange:
            if self.exited or self._instance is None:
                raise InstanceFailedError("the instance ended", object=self.instance_id, begun=False)
            try:
                async with asyncio.timeout(timeout_s) as limit:
                    self._limit = limit
                    return await call(self._instance)
            except (HandlerError, InvalidArgumentError, LimitExceededError):
                raise
            except InstanceFailedError as error:
                error.hint = error.hint or self._last_words()
                self.kill()
                raise
            except TimeoutError as error:
                if limit.expired():
                    raise self._overdue(timeout_s) from None
                raise self._misbehaved("answer", error) from error
            except asyncio.CancelledError:
                # Its answer would be taken for that of the next request.
                self.kill()
                raise
            except Exception as error:
                raise self._misbehaved("answer", error) from error
            finally:
                self._limit = None
                if self._gone:
                    self._leave()

    def _overdue(self, timeout_s: float) -> MedesError:
        """A call ran into the time limit, its own or that which the end of the process set."""
        tail = self._last_words()
        self.kill()
        if self._gone:
            return InstanceFailedError("the instance ended", object=self.instance_id, hint=tail, begun=True)
        return DeadlineExceededError(
            f"no answer within {timeout_s:g} s; the instance was ended", object=self.instance_id
        )

    def _misbehaved(self, what: str, error: Exception) -> InstanceFailedError:
        """A contract raised what it must not."""
        log.exception("%s could not %s", self.instance_id, what)
        tail = self._last_words()
        self.kill()
        return InstanceFailedError(
            f"the {self.spec.contract} contract failed: {type(error).__name__}: {error}",
            object=self.instance_id,
            hint=tail,
            begun=True,
        )

    def _watch_exit(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._pidfd = os.pidfd_open(self.pid)
            asyncio.get_running_loop().add_reader(self._pidfd, self._ended)

    def _ended(self) -> None:
        self._gone = True
        self._unwatch_exit()
        if self._limit is None:
            self._leave()
        elif not self._limit.expired():
            last_s = asyncio.get_running_loop().time() + LAST_WORDS_S
            self._limit.reschedule(min(last_s, self._limit.when() or last_s))

    def _leave(self) -> None:
        """The process ended by itself, and what it last wrote has been read."""
        self.kill()
        on_exit, self._on_exit = self._on_exit, None
        if on_exit is not None:
            on_exit(self)

    def _unwatch_exit(self) -> None:
        if self._pidfd >= 0:
            with contextlib.suppress(RuntimeError):
                asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
