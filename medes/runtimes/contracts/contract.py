"""The contract of function contracts: how an instance is started, and how it is given a request.

A function names one in function.toml (`contract = "native"`). The host does what is alike for all: it starts the process
in a session of its own and writes its log, watches its end, gives it one request at a time, ends it at the time limit, and
registers it with the agent. A contract says what to run, and carries requests to it.

```
 Contract.check(spec) ── the manifest is read
 Contract.missing()   ── the function is deployed
 Contract.open(…) ──► Instance.launch() ──► the host starts the Command ──► ready() ──► invoke() | run_hooks() … ──► close()
```

All methods are called in the host's event loop. Those that are not `async` return at once, the others never block it. The
calls about one instance come one after the other, those about different instances interleave. Whatever `launch`, `ready`,
`invoke` and `run_hooks` wait for, the host cancels them at its own time limit and when the process ends; it then closes the
instance, so a cancelled call need not leave its connection usable.

A dedup'd process has its connections open and does not run. Nothing may be sent to it between two calls: bytes that wake it
undo the dedup. Nothing may be expected of it either, such as the answer to a health check.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from medes.errors import FunctionError
from medes.runtimes.manifest import FunctionSpec

Phase = Literal["before_snapshot", "after_restore"]


@dataclass(frozen=True, slots=True)
class Command:
    """What the host starts, in the function's folder, with neither input nor terminal. Its output is the instance's log."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(
        default_factory=dict
    )  # over the host's own; `env` of the manifest wins
    # Open files that the process inherits under these numbers. They are the host's from here on: it closes them as soon
    # as the process has them, or could not be started.
    files: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Ready:
    """A loaded instance: how long its code took to load (0: not known), and how many hooks of each kind it has. Where
    there are none of either kind, the agent never asks for them; where they cannot be counted, say 1."""

    load_us: int = 0
    restore_hooks: int = 0
    snapshot_hooks: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """A function's result, anything that JSON can say, and for how long its handler ran (0: not known)."""

    result: Any
    handler_ms: float = 0.0


class HandlerError(FunctionError):
    """The function raised, or could not be loaded. After a request the instance goes on serving. `error` has `type`,
    `message` and `traceback` (lines), as far as they are known."""

    def __init__(self, function: str, error: Mapping[str, Any]) -> None:
        self.type = str(error.get("type", "Error"))
        self.error_message = str(error.get("message", ""))
        self.traceback = [str(line) for line in error.get("traceback", [])]
        super().__init__(f"{self.type}: {self.error_message}", object=function)

    def alone(self) -> Self:
        return type(self)(
            self.object,
            {"type": self.type, "message": self.error_message, "traceback": self.traceback},
        )


class InstanceFailedError(FunctionError):
    """The instance ended, broke its connection or answered nonsense: it is of no use any more, and the host ends it.

    `begun`: it may have seen a part of the request, and so may have done it. Such a request is given to no other instance,
    unless its function is idempotent. Say False only where that cannot be, such as before the first byte was sent."""

    def __init__(self, message: str, *, object: str = "", hint: str = "", begun: bool) -> None:
        super().__init__(message, object=object, hint=hint)
        self.begun = begun

    def alone(self) -> Self:
        return type(self)(self.message, object=self.object, hint=self.hint, begun=self.begun)


class Instance(ABC):
    """The host's end of one instance. Made by `Contract.open`, closed by `close`; each of `launch` and `ready` is called once."""

    @abstractmethod
    async def launch(self) -> Command:
        """Makes what the process needs to be reached (a socket, a listening server), and says what to start. Raises any
        error of the catalogue, and closes the command's files then; all else is for `close`, which follows."""

    @abstractmethod
    async def ready(self) -> Ready:
        """The process runs: waits until it can be given a request. Raises HandlerError where its code cannot be loaded,
        FunctionError for anything else; either is final. The host adds the end of the log, and the time limit."""

    @abstractmethod
    async def invoke(self, event: Any, request_id: str, timeout_s: float) -> Answer:
        """Has one request answered. `request_id` is new for each request of the host; `timeout_s` is the time limit, which
        the function may be told and the host sees to.

        Leave the instance as it was: HandlerError (the function raised); invalid_argument and limit_exceeded, of an event
        that cannot be sent, before anything of it was. Any other error ends the instance: InstanceFailedError, and what is
        not in this list is taken for one with `begun`."""

    async def run_hooks(self, phase: Phase, timeout_s: float) -> int:
        """Has the function's hooks of a phase run; how many there were. Called between requests: before the agent captures
        the process, and after a restore, before the request that caused it. May be repeated. Raises as `invoke` does;
        neither op fails by it."""
        return 0

    @abstractmethod
    def close(self) -> None:
        """Lets go of connections and servers, whatever state the instance is in: the process is about to be killed, or gone.
        A call under way fails or is cancelled. Repeatable; raises nothing."""


class Contract(ABC):
    """What an entry of `medes.function_contracts` names: a class, never an object. Its module can be imported where something
    is `missing`."""

    @classmethod
    def missing(cls) -> Mapping[str, str]:
        """What this machine lacks for it → how to get it; empty: it can run here. Milliseconds at most."""
        return {}

    @classmethod
    @abstractmethod
    def check(cls, spec: FunctionSpec) -> None:
        """Whether this function can be run: `handler`, `options` and what lies in its folder. `handler` is any text, as this
        contract understands it. Raises invalid_argument that names the key and `spec.path`; not an error that is found only
        when the code is loaded."""

    @classmethod
    @abstractmethod
    def open(cls, spec: FunctionSpec, instance_id: str, folder: Path) -> Instance:
        """A new instance, not started. `folder` is empty and its own, for sockets and files; the host removes it with
        all in it when the instance has ended."""
