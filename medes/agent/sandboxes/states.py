"""The states of a sandbox and which may follow which; pure, drawn in docs/lifecycle.md."""

from __future__ import annotations

from medes.errors import LostError, WrongStateError
from medes.types import SandboxState as S

# A transition that is not listed here is a bug of the agent (InternalError territory), never a request's fault.
TRANSITIONS: dict[S, frozenset[S]] = {
    S.WARM: frozenset({S.RUNNING, S.DEDUPING, S.PURGED}),
    S.RUNNING: frozenset({S.WARM, S.PURGED}),
    # A fault that arrives in the very moment of eviction makes the sandbox restore before it was reported dedup'd.
    S.DEDUPING: frozenset({S.WARM, S.DEDUP, S.LOST, S.PURGED}),
    S.DEDUP: frozenset({S.RESTORING, S.LOST, S.PURGED}),
    # Back to DEDUP when the holder of its base pages went away under the restore: its threads wait, nothing is lost.
    S.RESTORING: frozenset({S.WARM, S.RUNNING, S.DEDUP, S.LOST, S.PURGED}),
    # Back to DEDUP when bytes that were absent (a file, a base) have turned up.
    S.LOST: frozenset({S.DEDUP, S.PURGED}),
    S.PURGED: frozenset(),
}


def may_follow(before: S, after: S) -> bool:
    """Whether the table allows the transition."""
    return after in TRANSITIONS.get(before, frozenset())


def require_dedup_allowed(sandbox_id: str, state: S) -> None:
    """Raises wrong_state (or lost) unless a dedup op may start; RESTORING callers wait for completion first."""
    if state is S.LOST:
        raise LostError("the sandbox is lost", object=sandbox_id, hint="purge it and cold-start the function")
    if state is not S.WARM:
        hint = "only a warm (idle) sandbox can be dedup'd"
        raise WrongStateError(f"the sandbox is {state.label}", object=sandbox_id, hint=hint)


def require_restore_possible(sandbox_id: str, state: S, lost_reason: str) -> None:
    """Raises lost or wrong_state unless the sandbox is warm, running, dedup'd or on its way there."""
    if state is S.LOST:
        raise LostError(
            lost_reason or "the sandbox is lost", object=sandbox_id, hint="cold-start the function"
        )
    if state is S.PURGED:
        raise WrongStateError("the sandbox was purged", object=sandbox_id)
