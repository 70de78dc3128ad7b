"""What has become of the sandboxes since they were last looked at: noted by their subjects, journalled here."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from medes.agent.agent import Agent
from medes.agent.journal import records
from medes.agent.sandboxes.sandbox import SandboxEntry
from medes.drivers.subject import Subject, Subjects


async def look_again(agent: Agent, entries: Sequence[SandboxEntry]) -> None:
    """Brings them up to date, those of one kind in one look."""
    by_kind: dict[Subjects, list[Subject]] = defaultdict(list)
    for entry in entries:
        by_kind[agent.subjects_of(entry.spec)].append(entry.subject)
    known = {entry.id: entry for entry in entries}
    for kind, subjects in by_kind.items():
        for subject in await agent.in_restores(kind.look, subjects):
            if subject.sandbox_id in agent.journal.state.sandboxes:
                agent.journal.post(records.sandbox(known[subject.sandbox_id].record()))
