"""Fixed periods (medes.policy.keep_alive) with two additions: longer pauses after dedup ops that do not pay, and the order
in which memory pressure takes sandboxes."""

from __future__ import annotations

import math
from collections.abc import Iterable

from medes.config import AgentSettings
from medes.policy import keep_alive
from medes.policy.keep_alive import Action, Decision, Periods
from medes.policy.policy import Event, NodeView, Outlook, Step, View
from medes.types import SandboxState as S

BACKOFF_DOUBLINGS_MAX = 8


class FixedPeriods:
    """Remembers nothing."""

    @classmethod
    def make(cls, settings: AgentSettings) -> FixedPeriods:
        return cls()

    def observe(self, event: Event) -> None:
        """Periods depend on nothing but the age of a state."""

    def decide(self, node: NodeView) -> list[Step]:
        steps = []
        for view in node.sandboxes:
            action = due(view).action
            if action is Action.DEDUP:
                steps.append(Step(view.sandbox_id, action, "idle period over"))
            elif action is Action.PURGE:
                steps.append(Step(view.sandbox_id, action, f"{view.state.label} for its whole period"))
        if node.pressure:
            taken = {step.sandbox_id for step in steps}
            left = [v for v in node.sandboxes if v.sandbox_id not in taken]
            reason = f"memory pressure: {node.pressure}"
            steps += [Step(i, Action.DEDUP, reason) for i in under_pressure(left, node.ops_free - len(steps))]
        return steps

    def outlook(self, view: View) -> Outlook:
        if view.disabled:
            return Outlook(Action.NONE, 0.0, "its timers are disabled")
        decision = due(view)
        if decision.action is not Action.NONE:
            return Outlook(decision.action, 0.0, "due now")
        if decision.due_in_s is None:
            why = "without purge_kills a timer ends nothing: it stays dedup'd until it is needed or purged"
            return Outlook(Action.NONE, 0.0, why)
        later = due(view, decision.due_in_s + 0.001).action
        if later is Action.PURGE:
            period = "keep-alive period" if view.state is S.WARM else "keep-dedup period"
            return Outlook(later, decision.due_in_s, period)
        counts = ((view.idle_wakes, "wakes of its own"), (view.dedup_failures, "failed dedup ops"))
        setbacks = " and ".join(f"{count} {what}" for count, what in counts if count)
        return Outlook(later, decision.due_in_s, "idle period" + f", longer for {setbacks}" * bool(setbacks))


def due(view: View, in_s: float = 0.0) -> Decision:
    """What is due `in_s` from now, as things are, or how many seconds later the next thing is (None: nothing ever)."""
    if view.disabled:
        return Decision(Action.NONE)
    periods, never = view.periods, math.inf
    setbacks = min(view.idle_wakes + view.dedup_failures, BACKOFF_DOUBLINGS_MAX)
    # A zero idle period must back off too, hence the second term.
    idle_s = max(periods.idle_s * 2**setbacks, float(setbacks))
    keeps_s = (periods.keep_alive_s, periods.keep_dedup_s) if view.purge_kills else (never, never)
    return keep_alive.decide(view.state, max(0.0, view.age_s + in_s), Periods(idle_s, *keeps_s))


def under_pressure(views: Iterable[View], limit: int) -> list[str]:
    """Which warm sandboxes to dedup first when memory is short: longest idle first, at most `limit`."""
    warm = [v for v in views if v.state is S.WARM and not v.disabled and v.dedup_failures == 0]
    warm.sort(key=lambda v: (-v.age_s, -v.warm_bytes, v.sandbox_id))
    return [v.sandbox_id for v in warm[: max(0, limit)]]
