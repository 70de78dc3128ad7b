"""The one error catalogue: every failure Medes reports, its code, exit code and gRPC status.

An error says what failed (message), on which object, and what to do (hint). Codes are shared with
native/common/error.h and travel in the gRPC trailing metadata (`medes-error-bin`).
"""

from __future__ import annotations

from typing import ClassVar, Self


class MedesError(Exception):
    """Something in Medes failed."""

    code: ClassVar[str] = "internal"
    exit_code: ClassVar[int] = 70
    grpc_status: ClassVar[str] = "INTERNAL"
    transient: ClassVar[bool] = False

    def __init__(self, message: str, *, object: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.object = object
        self.hint = hint

    def __str__(self) -> str:
        text = f"{self.object}: {self.message}" if self.object else self.message
        return f"{text} ({self.hint})" if self.hint else text

    def alone(self) -> Self:
        """The same error, new: to keep one, or to raise one that was kept. An error that was raised holds the frames that it
        came through, and what caused it, with theirs."""
        return type(self)(self.message, object=self.object, hint=self.hint)


class TransientError(MedesError):
    """A failure that may pass: the same call can succeed later. The one answer to that question, asked of the error or of
    its code (`passes`); passes() in native/common/error.h gives the same."""

    transient = True


class InternalError(MedesError):
    """A broken invariant: a bug in Medes."""


class InvalidArgumentError(MedesError):
    """The caller's input is wrong."""

    code = "invalid_argument"
    exit_code = 2
    grpc_status = "INVALID_ARGUMENT"


class NotFoundError(MedesError):
    """The sandbox, base, function or file does not exist."""

    code = "not_found"
    exit_code = 3
    grpc_status = "NOT_FOUND"


class AlreadyExistsError(MedesError):
    """An object of that name exists."""

    code = "already_exists"
    exit_code = 4
    grpc_status = "ALREADY_EXISTS"


class PermissionDeniedError(MedesError):
    """A right is missing: ptrace, userfaultfd or access to the process."""

    code = "permission_denied"
    exit_code = 5
    grpc_status = "PERMISSION_DENIED"


class UnsupportedError(MedesError):
    """This kernel, CPU, device or build cannot do it."""

    code = "unsupported"
    exit_code = 6
    grpc_status = "UNIMPLEMENTED"


class ProcessGoneError(MedesError):
    """A process of the sandbox has exited."""

    code = "process_gone"
    exit_code = 7
    grpc_status = "FAILED_PRECONDITION"


class TracedError(MedesError):
    """Another tracer (gdb, strace) holds a process of the sandbox."""

    code = "traced"
    exit_code = 8
    grpc_status = "FAILED_PRECONDITION"


class StoreFullError(TransientError):
    """The base or patch store has no room."""

    code = "store_full"
    exit_code = 9
    grpc_status = "RESOURCE_EXHAUSTED"


class LimitExceededError(MedesError):
    """A bound of limits.py or limits.h was hit."""

    code = "limit_exceeded"
    exit_code = 10
    grpc_status = "OUT_OF_RANGE"


class CorruptError(MedesError):
    """A format check or checksum failed."""

    code = "corrupt"
    exit_code = 11
    grpc_status = "DATA_LOSS"


class LostError(MedesError):
    """The right bytes cannot be produced: the sandbox must be cold-started."""

    code = "lost"
    exit_code = 12
    grpc_status = "DATA_LOSS"


class PeerUnreachableError(TransientError):
    """Another agent does not answer."""

    code = "peer_unreachable"
    exit_code = 13
    grpc_status = "UNAVAILABLE"


class AgentUnreachableError(TransientError):
    """No agent answers at this address: it is not started, or listens elsewhere."""

    code = "agent_unreachable"
    exit_code = 22
    grpc_status = "UNAVAILABLE"


class ControllerUnreachableError(TransientError):
    """The controller does not answer."""

    code = "controller_unreachable"
    exit_code = 14
    grpc_status = "UNAVAILABLE"


class HostUnreachableError(TransientError):
    """No function host answers at this socket: it is not started, or listens elsewhere."""

    code = "host_unreachable"
    exit_code = 23
    grpc_status = "UNAVAILABLE"


class StoreUnreachableError(TransientError):
    """The controller's Redis does not answer."""

    code = "store_unreachable"
    exit_code = 24
    grpc_status = "UNAVAILABLE"


class UnauthenticatedError(TransientError):
    """A token or certificate was refused: a new one may be accepted, as after a restart of the other side."""

    code = "unauthenticated"
    exit_code = 15
    grpc_status = "UNAUTHENTICATED"


class CancelledError(TransientError):
    """Activity arrived during a dedup op: the sandbox stays warm."""

    code = "cancelled"
    exit_code = 16
    grpc_status = "ABORTED"


class DeadlineExceededError(TransientError):
    """It took longer than allowed."""

    code = "deadline_exceeded"
    exit_code = 17
    grpc_status = "DEADLINE_EXCEEDED"


class BusyError(TransientError):
    """Admission control refused: try later."""

    code = "busy"
    exit_code = 18
    grpc_status = "RESOURCE_EXHAUSTED"


class IoError(MedesError):
    """A system call failed."""

    code = "io"
    exit_code = 19
    grpc_status = "INTERNAL"


class FunctionError(MedesError):
    """The user's function raised or could not be loaded."""

    code = "function"
    exit_code = 20
    grpc_status = "UNKNOWN"


class WrongStateError(MedesError):
    """The sandbox (or a closed client) is in a state in which this cannot be done."""

    code = "wrong_state"
    exit_code = 21
    grpc_status = "FAILED_PRECONDITION"


def _catalogue(base: type[MedesError]) -> dict[str, type[MedesError]]:
    found = {} if base in (MedesError, TransientError) else {base.code: base}
    for sub in base.__subclasses__():
        found.update(_catalogue(sub))
    return found


BY_CODE: dict[str, type[MedesError]] = _catalogue(MedesError)


def passes(code: str) -> bool:
    """Whether a failure of this catalogue code may pass."""
    found = BY_CODE.get(code)
    return found is not None and found.transient


def from_code(code: str, message: str, object: str = "", hint: str = "") -> MedesError:
    """The exception for a catalogue code (InternalError for an unknown one). Called by the bindings too."""
    return BY_CODE.get(code, InternalError)(message, object=object, hint=hint)
