"""What the agent does with a sandbox on its own motion: its one decision point. Pure functions.

Fixed periods (medes.policy.keep_alive) with two additions: back-off from dedup ops that do not pay, and the order in
which memory pressure takes sandboxes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from medes.policy import keep_alive
from medes.policy.keep_alive import Action, Decision, Periods
from medes.types import SandboxState as S

__all__ = ["Action", "Decision", "Periods", "View", "decide", "due", "under_pressure"]

BACKOFF_DOUBLINGS_MAX = 8


@dataclass(frozen=True, slots=True)
class View:
    """A sandbox as the decision sees it. `age_s`: how long it has been in its state."""

    sandbox_id: str
    state: S
    age_s: float
    periods: Periods
    disabled: bool = False
    # Times in a row that the sandbox woke by its own fault without a request (a timer inside it): each doubles the
    # idle period, or dedup and wake would follow each other for ever.
    idle_wakes: int = 0
    # Failed dedup ops in a row; each doubles the idle period as well.
    dedup_failures: int = 0
    warm_bytes: int = 0
    # Whether a purge ends the processes. Without it a timer never purges: it would give all the memory back and
    # forget a sandbox that its runtime still counts on.
    purge_kills: bool = True


def decide(view: View) -> Action:
    """What is due now."""
    return due(view).action


def due(view: View) -> Decision:
    """What is due now, or in how many seconds the next thing is (None: nothing ever, as things are)."""
    if view.disabled:
        return Decision(Action.NONE)
    setbacks = min(view.idle_wakes + view.dedup_failures, BACKOFF_DOUBLINGS_MAX)
    # A zero idle period must back off too, hence the second term.
    idle_s = max(view.periods.idle_s * 2**setbacks, float(setbacks))
    periods = replace(view.periods, idle_s=idle_s)
    if not view.purge_kills:
        periods = replace(periods, keep_alive_s=math.inf, keep_dedup_s=math.inf)
    return keep_alive.decide(view.state, max(0.0, view.age_s), periods)


def under_pressure(views: Iterable[View], limit: int) -> list[str]:
    """Which warm sandboxes to dedup first when memory is short: longest idle first, at most `limit`."""
    warm = [v for v in views if v.state is S.WARM and not v.disabled and v.dedup_failures == 0]
    warm.sort(key=lambda v: (-v.age_s, -v.warm_bytes, v.sandbox_id))
    return [v.sandbox_id for v in warm[:limit]]
