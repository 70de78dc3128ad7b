"""What an instance's frames mean to the host: results, and errors of the user's function."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from medes.errors import FunctionError
from medes.faas.manifest import FunctionSpec


@dataclass(frozen=True, slots=True)
class Ready:
    """A loaded instance: how long its import took, and how many hooks of each kind it registered."""

    load_us: int
    restore_hooks: int
    snapshot_hooks: int


class HandlerError(FunctionError):
    """The function raised: the instance goes on serving."""

    def __init__(self, function: str, error: dict[str, Any]) -> None:
        self.type = str(error.get("type", "Error"))
        self.error_message = str(error.get("message", ""))
        self.traceback = [str(line) for line in error.get("traceback", [])]
        super().__init__(f"{self.type}: {self.error_message}", object=function)


class InstanceFailedError(FunctionError):
    """The instance ended or broke its connection. `begun`: it had been given the request, and may have done it."""

    def __init__(self, message: str, *, object: str = "", hint: str = "", begun: bool) -> None:
        super().__init__(message, object=object, hint=hint)
        self.begun = begun


def result_of(spec: FunctionSpec, answer: dict[str, Any], request_id: str) -> Any:
    """The handler's result. Raises HandlerError when it failed, FunctionError for an answer to another request."""
    if answer.get("id") != request_id:
        raise FunctionError(f"answered {answer.get('id')!r} instead of {request_id!r}", object=spec.name)
    if "error" in answer:
        raise HandlerError(spec.name, answer["error"])
    return answer.get("result")


def check_ready(spec: FunctionSpec, frame: dict[str, Any] | None, log_tail: str) -> Ready:
    """What an instance's first frame says. Raises HandlerError when its code failed to load, FunctionError when
    the process ended."""
    if frame is None:
        raise FunctionError(
            "the instance ended while it loaded",
            object=spec.name,
            hint=log_tail.strip()[-500:] or "it wrote nothing",
        )
    if "error" in frame:
        raise HandlerError(spec.name, frame["error"])
    numbers = (int(frame.get(key, 0)) for key in ("load_us", "restore_hooks", "snapshot_hooks"))
    return Ready(*numbers)
