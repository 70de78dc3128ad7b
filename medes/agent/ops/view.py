"""What the lifecycle's policy is shown of a sandbox."""

from __future__ import annotations

from medes.agent.agent import Agent
from medes.agent.sandboxes.periods import periods_in_force
from medes.agent.sandboxes.sandbox import SandboxEntry
from medes.policy.policy import View


def view_of(agent: Agent, entry: SandboxEntry) -> View:
    """The sandbox as the policy sees it."""
    own, override = entry.spec.lifecycle, agent.settings.for_function(entry.spec.function)
    return View(
        entry.id,
        entry.state,
        entry.idle_s(agent.clock.now_s()),
        periods_in_force(own, override),
        own.disabled or bool(override.disabled),
        entry.idle_wakes,
        entry.dedup_failures,
        entry.warm_bytes,
        entry.spec.purge_kills,
        entry.spec.function,
    )
