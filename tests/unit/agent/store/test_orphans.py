"""Files that the agent does not know."""

from __future__ import annotations

from pathlib import Path

from medes.agent.store import orphans


def test_only_what_the_store_was_writing_is_temporary() -> None:
    """It is removed at a start; the file of a sandbox whose id has ".tmp-" in it is not, nor is a copy of one."""
    names = [
        "base-1.slab.tmp-17-0",
        "sandbox-a.tmp-17-0.medes",
        "sandbox-a.medes.tmp-old",
        "sandbox-a.tmp-1.medes",
    ]
    assert [orphans.is_temporary(Path(name)) for name in names] == [True, False, False, False]
