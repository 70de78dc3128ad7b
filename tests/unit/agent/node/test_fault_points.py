"""The lists that the recovery tests kill the agent by name every point there is."""

from __future__ import annotations

import re
from pathlib import Path

import medes.agent
from medes.agent.node.fault_points import DEDUP_POINTS, RECLAIM_POINTS, RESTORE_POINTS


def test_every_point_of_the_source_is_listed_once() -> None:
    found: list[str] = []
    for source in Path(medes.agent.__file__).parent.rglob("*.py"):
        found += re.findall(r'\bpoint\(\s*"([\w.]+)"', source.read_text())
    assert sorted(found) == sorted([*DEDUP_POINTS, *RESTORE_POINTS, *RECLAIM_POINTS])
