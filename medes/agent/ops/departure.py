"""The end of the agent's knowledge of a sandbox."""

from __future__ import annotations

import logging
from pathlib import Path

from medes.agent.agent import Agent
from medes.agent.journal import records
from medes.agent.ops.op_pins import unpin
from medes.agent.sandboxes.sandbox import SandboxEntry
from medes.types import PurgeCause
from medes.types import SandboxState as S

log = logging.getLogger(__name__)


async def forget(
    agent: Agent, entry: SandboxEntry, reason: str, cause: PurgeCause = PurgeCause.EXITED
) -> None:
    """Ends the agent's knowledge of a sandbox: state PURGED, file, pins and journal record go. The caller holds the lock,
    where anybody could take it. That its processes have exited may be seen before the purge that ended them gets here."""
    if entry.evicted is not None and entry.evicted.live is not None:
        # The fault server knows sandboxes by their file's path, which the next one of this id will have too.
        await agent.in_restores(entry.evicted.live.detach)
    if entry.ended_by is not None:
        reason, cause = entry.ended_by
    evicted, pending = entry.leave()
    agent.journal.post(records.purged(entry.id))
    if entry.state is not S.PURGED:
        agent.move(entry, S.PURGED, reason, cause)
    agent.entries.pop(entry.id, None)
    agent.subjects_of(entry.spec).forget(entry.id)
    agent.observer.purged(cause.label)
    if evicted is not None:
        evicted.file.unlink()
        unpin(agent, evicted.holder, evicted.pins)
    elif pending is not None and pending.path:
        remove_sandbox_file(Path(pending.path))
        unpin(agent, pending.holder, pending.pins)
    agent.controller.changed(entry.id)


def remove_sandbox_file(path: Path) -> None:
    """Removes a sandbox file that was never opened here, and its children's. The processes have exited."""
    for file in (*path.parent.glob(f"{path.name}.child-*"), path):
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s: %s", file, error)
