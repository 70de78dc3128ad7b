"""Named places at which a test may have the agent killed: MEDES_FAULT=<name> in its environment.

The native core has the same for its own steps (native/common/fault_point.h). Without the variable a point costs one
comparison.
"""

from __future__ import annotations

import os
import signal

_ARMED = os.environ.get("MEDES_FAULT", "")

# Every point of the two ops, in the order they are reached; tests kill the agent at each of them.
DEDUP_POINTS = (
    "dedup.captured",
    "dedup.base_built",
    "dedup.base_published",
    "dedup.pins_asked",
    "dedup.pinned",
    "dedup.encoded",
    "dedup.written",
    "dedup.committed",
    "dedup.evicted",
)
RESTORE_POINTS = (
    "restore.begun",
    "restore.ready",
    "restore.complete",
    "restore.settled",
    "restore.unlinked",
)
RECLAIM_POINTS = ("reclaim.taken",)


def point(name: str) -> None:
    """Kills this process when the point is armed."""
    if _ARMED and name == _ARMED:
        os.kill(os.getpid(), signal.SIGKILL)
