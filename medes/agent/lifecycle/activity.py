"""Leases on activity: a runtime that died between a request's begin and its end must not keep a sandbox running for ever.

Every begin and end renews it. When it is over the sandbox counts as idle; should a request be in it after all, nothing is
lost: its memory comes back as it is touched. The connection of the runtime says nothing: a runtime may report from
processes that come and go.
"""

from __future__ import annotations

import logging

from medes.agent.agent import Agent
from medes.agent.sandboxes.periods import activity_lease_s
from medes.types import SandboxState as S

log = logging.getLogger(__name__)


def end_expired(agent: Agent) -> None:
    """Makes sandboxes idle that have been running without a word for their whole lease."""
    now_s = agent.clock.now_s()
    for entry in list(agent.entries.values()):
        if entry.state is not S.RUNNING or entry.lock.locked():
            continue
        silent_s = now_s - max(entry.heard_s, entry.since_s)
        if silent_s < activity_lease_s(agent.settings, entry.spec.function, entry.spec.lifecycle):
            continue
        log.warning(
            "%s: no request began or ended for %.0f s, %d without an end: it counts as idle",
            *(entry.id, silent_s, entry.requests),
        )
        agent.observer.activity_expired()
        entry.end_all_requests()
        agent.move(entry, S.WARM, "its lease on activity is over")
