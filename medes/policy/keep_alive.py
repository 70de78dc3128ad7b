"""Fixed periods: what is due for an idle sandbox. Pure functions; the caller measures the ages."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

from medes.types import SandboxState


class Action(enum.Enum):
    """What the lifecycle should do now."""

    NONE = "none"
    DEDUP = "dedup"
    PURGE = "purge"


@dataclass(frozen=True, slots=True)
class Periods:
    """Seconds, math.inf: never. A warm sandbox is dedup'd after idle_s, purged after keep_alive_s; a dedup'd one after
    keep_dedup_s."""

    idle_s: float
    keep_alive_s: float
    keep_dedup_s: float


@dataclass(frozen=True, slots=True)
class Decision:
    """The action due now, or after how many seconds the next one falls due (None: never)."""

    action: Action
    due_in_s: float | None = None


def decide(state: SandboxState, age_s: float, periods: Periods, *, dedup_possible: bool = True) -> Decision:
    """What is due for a sandbox that has been idle in `state` for age_s seconds.

    dedup_possible is False after a dedup op that could not be done (no permission, pinned memory): such a
    sandbox stays warm until its keep-alive period ends. The keep-alive period counts from the last request and
    wins where it is not longer than the idle period.
    """
    if age_s < 0:
        raise ValueError("an age cannot be negative")
    if state is SandboxState.WARM:
        if age_s >= periods.keep_alive_s:
            return Decision(Action.PURGE)
        if dedup_possible and age_s >= periods.idle_s:
            return Decision(Action.DEDUP)
        deadline_s = min(periods.idle_s, periods.keep_alive_s) if dedup_possible else periods.keep_alive_s
        return _in(deadline_s - age_s)
    if state is SandboxState.DEDUP:
        if age_s >= periods.keep_dedup_s:
            return Decision(Action.PURGE)
        return _in(periods.keep_dedup_s - age_s)
    return Decision(Action.NONE)


def _in(seconds: float) -> Decision:
    return Decision(Action.NONE, seconds if math.isfinite(seconds) else None)
