"""What a starting agent does with what the one before left: bases, sandboxes, half-done ops, pins.

The journal says what was going on; where it says "dedup op" or "restore", the page states in the sandbox file say
how far it got. Both survive `kill -9`, because both live outside the process. Nothing here asks the controller.
"""

from __future__ import annotations

import functools
import json
import logging
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from medes import native
from medes.agent import journal_state, restore_op
from medes.agent.base_op import free_base
from medes.agent.core import Agent, endpoints_from_json
from medes.agent.dedup_op import META_VERSION
from medes.agent.journal_state import JournalSandbox
from medes.agent.sandbox import Evicted, SandboxEntry, SandboxSpec
from medes.agent.store_identity import same_store
from medes.errors import CorruptError, MedesError, PeerUnreachableError
from medes.types import AddressRange, BaseDescriptor
from medes.types import SandboxState as S

log = logging.getLogger(__name__)

RECONCILE_RETRY_S = 2.0


@dataclass(slots=True)
class Recovered:
    """Counts, for the log and the tests."""

    bases: int = 0
    warm: int = 0
    dedup: int = 0
    rolled_back: int = 0
    lost: int = 0
    gone: int = 0
    orphans: int = 0
    notes: list[str] = field(default_factory=list)

    def text(self) -> str:
        """`2 bases, 1 dedup, 1 lost; a note`, without what is 0."""
        counts = [
            (f.name.replace("_", " "), getattr(self, f.name)) for f in fields(self) if f.name != "notes"
        ]
        told = ", ".join(f"{count} {name}" for name, count in counts if count)
        return "; ".join([told or "nothing", *self.notes])


async def recover(agent: Agent) -> Recovered:
    """Rebuilds the agent's state; call once, before it serves. Raises io only."""
    found = Recovered()
    if agent.journal.skipped_lines:
        found.notes.append(f"{agent.journal.skipped_lines} damaged journal lines skipped")
    for endpoints in agent.journal.state.peers.values():
        agent.peers.endpoints[endpoints["node_id"]] = endpoints_from_json(endpoints)
    await _recover_bases(agent, found)
    for (node_id, holder), (domain, base_ids) in agent.journal.state.pins.items():
        agent.pins.pin(node_id, holder, domain, base_ids)
    for known in _unjournalled(agent):
        agent.journal.state.sandboxes[known.spec["sandbox_id"]] = known
    for known in list(agent.journal.state.sandboxes.values()):
        try:
            await _recover_sandbox(agent, known, found)
        except (MedesError, KeyError, TypeError, ValueError) as error:
            found.notes.append(f"{known.spec.get('sandbox_id')}: {error}")
    await _remove_orphans(agent, found)
    for base_id in [b.base_id for b in agent.bases.bases.values() if b.retired]:
        free_base(agent, base_id)
    log.info("recovered: %s", found.text())
    return found


# --- bases -------------------------------------------------------------------------------------------------
async def _recover_bases(agent: Agent, found: Recovered) -> None:
    for base_id, known in list(agent.journal.state.bases.items()):
        descriptor = known.descriptor
        try:
            base, prints = await agent.in_ops(
                lambda k=known, d=descriptor: agent.bases.reopen(
                    k.path, d["domain"], d.get("function", ""), fingerprints=not k.retired
                )
            )
            if base.base_id != base_id:
                raise CorruptError("the slab holds another base", object=known.path)
        except MedesError as error:
            found.notes.append(f"base {base_id:016x}: {error}")
            agent.journal.post({"t": "base_gone", "base_id": base_id})
            continue
        base.retired, base.sandbox_id = known.retired, known.sandbox_id
        agent.bases.add(base, prints)
        found.bases += 1


async def _remove_orphans(agent: Agent, found: Recovered) -> None:
    """Files of ours that nothing refers to: a slab that was not journalled has been seen by nobody."""
    used = {b.slab.path for b in agent.bases.bases.values()}
    used |= {e.evicted.file.path for e in agent.entries.values() if e.evicted is not None}
    # The file of a lost sandbox is kept until it is purged: it is what is left of its memory.
    used |= {str(agent.sandbox_path(e.id)) for e in agent.entries.values() if e.state is S.LOST}
    for path in own_files(agent.settings.shm_path):
        # A forked child's file lies beside its sandbox's: SANDBOX_FILE.child-NUMBER.
        sandbox_file, _, number = str(path).rpartition(".child-")
        if str(path) not in used and not (number.isdigit() and sandbox_file in used):
            path.unlink(missing_ok=True)
            found.orphans += 1


def own_files(folder: Path) -> list[Path]:
    """Files the agent makes in shm_dir, temporary ones included; nothing else there is ever touched."""
    if not folder.is_dir():
        return []
    return [p for p in folder.iterdir() if p.is_file() and p.name.startswith(("base-", "sandbox-"))]


# --- sandboxes ---------------------------------------------------------------------------------------------
def _unjournalled(agent: Agent) -> list[JournalSandbox]:
    """Sandbox files whose journal lines were damaged: their meta says whose they are."""
    known = set(agent.journal.state.sandboxes)
    found = []
    for path in own_files(agent.settings.shm_path):
        if path.suffix != ".medes":
            continue
        try:
            meta = read_meta(native.SandboxFile.open(str(path)))
            if meta["spec"]["sandbox_id"] not in known:
                sandbox = JournalSandbox(meta["spec"], journal_state.DEDUPING, str(path), meta["holder"])
                sandbox.pins = {node: list(ids) for node, ids in meta["pins"].items()}
                found.append(sandbox)
        except (MedesError, KeyError, TypeError) as error:
            log.warning("%s: %s", path, error)
    return found


def read_meta(file: native.SandboxFile) -> dict[str, Any]:
    """The agent's part of a sandbox file. Raises corrupt."""
    try:
        meta = json.loads(file.meta)
        if meta["version"] != META_VERSION:
            raise CorruptError(f"meta version {meta['version']}", object=file.path)
        return dict(meta)
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptError(f"meta: {error}", object=file.path) from error


async def _recover_sandbox(agent: Agent, known: JournalSandbox, found: Recovered) -> None:
    spec = SandboxSpec.from_json(known.spec)
    if spec.driver not in agent.drivers:
        found.notes.append(f"{spec.sandbox_id}: driver {spec.driver} cannot run here now")
    if not spec.live_roots():
        agent.journal.post({"t": "purged", "id": spec.sandbox_id})
        found.gone += 1
        return  # its file, if any, is removed with the orphans; its pins at peers by ReconcilePins
    entry = SandboxEntry(spec, agent.node_id, S.WARM, agent.clock.now_s())
    entry.warm_bytes = await agent.in_ops(lambda: native.private_bytes(spec.processes()))
    entry.dedup_count = int(known.figures.get("dedup_count", 0))
    entry.is_base = any(b.sandbox_id == spec.sandbox_id for b in agent.bases.bases.values())
    agent.entries[spec.sandbox_id] = entry
    if known.phase == journal_state.LOST:
        entry.state, entry.lost_reason = S.LOST, known.lost_reason
        found.lost += 1
    elif known.phase == journal_state.WARM or not Path(known.path).exists():
        if known.phase in (journal_state.DEDUP, journal_state.RESTORING):
            # Committed, and the file is gone: the restore had ended, or the memory cannot be had back.
            found.notes.append(f"{spec.sandbox_id}: no sandbox file")
        agent.journal.post({"t": journal_state.WARM, "id": spec.sandbox_id})
        found.warm += 1
    else:
        await _recover_evicted(agent, entry, known, found)


async def _recover_evicted(
    agent: Agent, entry: SandboxEntry, known: JournalSandbox, found: Recovered
) -> None:
    try:
        file = native.SandboxFile.open(known.path)
        counts = file.page_state_counts
        out = any(counts.get(state, 0) for state in ("evicted", "evicting", "restored"))
        if not out and not file.child_paths:
            # Killed before the first page went: the sandbox has all its memory.
            file.continue_stopped()
            file.unlink()
            agent.journal.post({"t": journal_state.WARM, "id": entry.id})
            found.rolled_back += 1
            return
        evicted = await _adopt(agent, entry, file)
    except MedesError as error:
        entry.state, entry.lost_reason = S.LOST, f"not taken back after a restart: {error}"
        agent.journal.post({"t": journal_state.LOST, "id": entry.id, "reason": entry.lost_reason})
        found.lost += 1
        found.notes.append(f"{entry.id}: {error}")
        return
    entry.evicted = evicted
    evicted.since_s = agent.clock.now_s()
    entry.warm_bytes = int(known.figures.get("warm_bytes", 0)) or entry.warm_bytes
    entry.kept_bytes = int(known.figures.get("kept_bytes", 0)) or file.file_bytes
    agent.pins.pin(agent.node_id, evicted.holder, entry.spec.domain, evicted.pins.get(agent.node_id, []))
    found.dedup += 1
    if evicted.live is None:
        entry.state = S.DEDUP
        wanted = known.phase == journal_state.RESTORING
        agent.spawn(restore_op.adopt_later(agent, entry, wanted=wanted), f"adopt {entry.id}")
        return
    if evicted.live.state in ("restoring", "complete"):
        entry.state = S.RESTORING
        entry.completed.clear()
        await restore_op.resume_watch(agent, entry)
        return
    entry.state = S.DEDUP
    if known.phase == journal_state.RESTORING or counts.get("restored", 0):
        agent.spawn(_resume_restore(agent, entry), f"resume restore {entry.id}")


async def _resume_restore(agent: Agent, entry: SandboxEntry) -> None:
    """A restore was under way when the agent died: somebody wanted this sandbox."""
    async with entry.lock:
        if entry.state is S.DEDUP:
            await restore_op.start(agent, entry, eager=False, deadline_s=60.0, reason="restore resumed")


async def _adopt(agent: Agent, entry: SandboxEntry, file: native.SandboxFile) -> Evicted:
    """Raises what makes the sandbox lost: a base of ours is gone, the userfaultfd cannot be had.

    Where a peer does not answer, `live` stays empty: faults wait until it does (see `restore_op.adopt_later`).
    """
    meta = read_meta(file)
    evicted = Evicted(
        file,
        native.BaseSet(),
        None,
        str(meta["holder"]),
        {node: [int(i) for i in ids] for node, ids in meta["pins"].items()},
        {int(d["base_id"]): _descriptor(d) for d in meta["descriptors"]},
        {e["node_id"]: endpoints_from_json(e) for e in meta["endpoints"]},
    )
    try:
        await restore_op.rebind(agent, entry, evicted)
    except PeerUnreachableError as error:
        log.warning("%s: %s: it waits until its base pages can be read", entry.id, error)
    return evicted


def _descriptor(data: dict[str, Any]) -> BaseDescriptor:
    ranges = tuple(AddressRange(int(r["begin"]), int(r["end"])) for r in data["ranges"])
    return BaseDescriptor(**{**data, "ranges": ranges})


# --- pins at peers -----------------------------------------------------------------------------------------
def own_pins_at(agent: Agent, node_id: str) -> dict[str, tuple[str, list[int]]]:
    """Holder → (domain, base ids) of everything this node needs at a peer, dedup ops under way included."""
    found = {
        e.evicted.holder: (e.spec.domain, e.evicted.pins[node_id])
        for e in agent.entries.values()
        if e.evicted is not None and e.evicted.pins.get(node_id)
    }
    for holder, (domain, pins) in agent.pins_of_ops.items():
        if pins.get(node_id):
            found[holder] = (domain, pins[node_id])
    return found


async def reconcile_pins(agent: Agent) -> None:
    """Tells every known peer once which pins this node holds there; tries again until each has answered."""
    waiting = set(agent.peers.endpoints)
    while waiting and not agent.stopping:
        for node_id in sorted(waiting):
            try:
                missing = await agent.peers.reconcile(node_id, functools.partial(own_pins_at, agent, node_id))
            except MedesError as error:
                log.info("pins at %s: %s", node_id, error)
                await agent.peers.refresh(node_id)
                continue
            waiting.discard(node_id)
            _lose_users_of(agent, missing, node_id)
        if waiting:
            await agent.clock.sleep(RECONCILE_RETRY_S)


def _lose_users_of(agent: Agent, missing: set[int], node_id: str) -> None:
    for entry in list(agent.entries.values()):
        evicted = entry.evicted
        if evicted is not None and missing.intersection(evicted.pins.get(node_id, [])):
            pinned_at = evicted.endpoints.get(node_id)
            if pinned_at is not None and not same_store(
                pinned_at.store, agent.peers.endpoints[node_id].store
            ):
                log.error("%s: node %s has another store than the one with its base pages", entry.id, node_id)
                continue  # that one may come back
            agent.lose(entry, f"{node_id} no longer has its base pages")
