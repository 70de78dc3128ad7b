"""What a starting agent does with what the one before left: bases, sandboxes, half-done ops, pins.

Slabs and sandbox files say whose they are and how far an op got; the journal adds what they cannot say. Both survive
`kill -9`, because both live outside the process. Nothing here asks the controller, and nothing that is not understood
is removed: see medes.agent.ops.waiting and medes.agent.store.orphans.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from medes import native
from medes.agent.agent import Agent, endpoints_from_json
from medes.agent.bases.bases import BaseMeta
from medes.agent.bases.pins import UNKNOWN_HOLDER, UNKNOWN_NODE
from medes.agent.journal import records
from medes.agent.journal.journal_state import JournalSandbox
from medes.agent.journal.store_identity import same_store
from medes.agent.ops import members, take_back, waiting
from medes.agent.ops.base_op import base_record, free_base
from medes.agent.ops.op_pins import own_pins_at
from medes.agent.sandboxes.sandbox import Pending, SandboxEntry, SandboxSpec, to_record
from medes.agent.store import orphans
from medes.agent.store.orphans import Orphan
from medes.drivers.subject import Subject
from medes.errors import AlreadyExistsError, CorruptError, MedesError, NotFoundError, UnsupportedError
from medes.types import SandboxState as S

log = logging.getLogger(__name__)

LASTING = (UnsupportedError, CorruptError, NotFoundError)  # no file heals of itself
RECONCILE_RETRY_S = 2.0
JOIN_WAIT_S = 5.0
RESCAN_S_FIRST, RESCAN_S_MAX = 1.0, 30.0


@dataclass(slots=True)
class Recovered:
    """Counts, for the log and the tests."""

    bases: int = 0
    warm: int = 0
    dedup: int = 0
    waiting: int = 0
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

    def doubtful(self) -> bool:
        """Whether an operator should look."""
        return bool(self.waiting or self.lost or self.orphans or self.notes)


@dataclass(slots=True)
class Found:
    """A sandbox file that says whose it is."""

    file: native.SandboxFile
    spec: SandboxSpec
    subject: Subject
    holder: str
    pins: dict[str, list[int]]
    elsewhere: bool  # what it says of its subject means nothing here


async def recover(agent: Agent) -> Recovered:
    """Rebuilds the agent's state; call once, before it serves. Raises io only."""
    found = Recovered()
    _read_journal_notes(agent, found)
    files = await agent.in_ops(_sandbox_files, agent)
    await _recover_bases(agent, files, found)
    _recover_pins(agent, found)
    agent.bases.complete = True
    for path, file in sorted(files.items(), key=lambda f: not _in_place(agent, *f)):
        if file.spec.sandbox_id not in agent.journal.state.sandboxes:
            _journal_again(agent, path, file)
    for (
        known
    ) in agent.journal.state.sandboxes.values():  # each is told from the others, also before it is there
        with contextlib.suppress(KeyError, TypeError, ValueError):
            spec, subject = _made_of(agent, known.spec)
            agent.subjects_of(spec).follow(subject)
    for known in list(agent.journal.state.sandboxes.values()):
        try:
            await _recover_sandbox(agent, known, _file_of(agent, known, files), found)
        except (MedesError, KeyError, TypeError, ValueError) as error:
            found.notes.append(f"{known.spec.get('sandbox_id')}: {error}")
    await agent.in_ops(_remove_leftovers, agent, files)
    found.orphans = len(agent.orphans)
    if all_pins_known(agent):
        for base_id in [b.base_id for b in agent.bases.bases.values() if b.retired]:
            free_base(agent, base_id)
    log.log(logging.WARNING if found.doubtful() else logging.INFO, "recovered: %s", found.text())
    for orphan in agent.orphans.values():
        log.warning(
            "%s is left alone, %s: %s (see medes orphans ls)", orphan.path, orphan.error.code, orphan.error
        )
    if agent.orphans:
        agent.spawn(_rescan(agent), "files that could not be read")
    return found


def _read_journal_notes(agent: Agent, found: Recovered) -> None:
    journal = agent.journal
    if journal.set_aside is not None:
        found.notes.append(f"the journal of a newer agent is at {journal.set_aside}")
    if journal.damaged:
        found.notes.append(f"{journal.damaged} damaged journal lines skipped")
    for endpoints in journal.state.peers.values():
        try:
            agent.peers.endpoints[endpoints["node_id"]] = endpoints_from_json(endpoints)
        except (KeyError, TypeError) as error:
            found.notes.append(f"a peer's address: {error!r}")


def all_pins_known(agent: Agent) -> bool:
    """Whether every sandbox file's pins are known: only then may anybody be told that others are not needed."""
    return not any(Path(path).suffix == ".medes" for path in agent.orphans)


# --- files -------------------------------------------------------------------------------------------------
def _sandbox_files(agent: Agent) -> dict[str, Found]:
    """(blocks) Path → what is in it, of all that can be read; the others become orphans. Raises io."""
    found = {}
    for path in orphans.own_files(agent.settings.shm_path):
        if path.suffix != ".medes":
            continue
        try:
            found[str(path)] = _open_file(agent, str(path))
        except MedesError as error:
            _leave(agent, str(path), error)
    return found


def _open_file(agent: Agent, path: str) -> Found:
    """(blocks) Raises why it cannot be used."""
    file = native.SandboxFile.open(path)
    meta = take_back.read_meta(file)
    evicted = take_back.evicted_of(file, meta)
    try:
        spec, subject = _made_of(agent, meta["spec"])
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptError(f"meta: {error!r}", object=path) from error
    elsewhere = take_back.is_elsewhere(agent, spec, meta)
    return Found(file, spec, subject, evicted.holder, evicted.pins, elsewhere)


def _made_of(agent: Agent, record: Mapping[str, Any]) -> tuple[SandboxSpec, Subject]:
    """What `to_record` wrote. Raises KeyError, TypeError, ValueError for what no agent did."""
    spec = SandboxSpec.from_json(record)
    return spec, agent.subjects_of(spec).from_json(spec.sandbox_id, record)


def _leave(agent: Agent, path: str, error: MedesError) -> None:
    agent.orphans[path] = Orphan(path, error.alone())


def _in_place(agent: Agent, path: str, file: Found) -> bool:
    """Whether it bears the name that agents give it: another may be a copy, and older."""
    return path == str(agent.sandbox_path(file.spec.sandbox_id))


def _file_of(agent: Agent, known: JournalSandbox, files: dict[str, Found]) -> Found | None:
    """A sandbox's file. One that is not in its place was renamed, if it is the only one of the same dedup op."""
    sandbox_id = str(known.spec.get("sandbox_id", ""))
    own = {path: f for path, f in files.items() if f.spec.sandbox_id == sandbox_id}
    if (at := known.path or str(agent.sandbox_path(sandbox_id))) in own:
        return own[at]
    same = [f for f in own.values() if known.holder and f.holder == known.holder]
    return same[0] if len(same) == 1 else None


def _journal_again(agent: Agent, path: str, file: Found) -> None:
    """A sandbox that the journal does not know, though its file is there."""
    agent.journal.post(
        records.sandbox(to_record(file.spec, file.subject)),
        records.dedup(file.spec.sandbox_id, path, file.holder, file.pins),
    )


def _remove_leftovers(agent: Agent, files: dict[str, Found]) -> None:
    """(blocks) What an agent was writing when it ended, and files of sandboxes whose processes have all exited. Anything
    else that the agent does not know is left."""
    used = {b.slab.path for b in agent.bases.bases.values()} | set(agent.orphans)
    used |= {e.evicted.file.path for e in agent.entries.values() if e.evicted is not None}
    used |= {e.pending.path for e in agent.entries.values() if e.pending is not None}
    for path in orphans.own_files(agent.settings.shm_path):
        # A forked child's file lies beside its sandbox's: SANDBOX_FILE.child-NUMBER.
        sandbox_file, _, number = str(path).rpartition(".child-")
        if str(path) in used or (number.isdigit() and sandbox_file in used | set(files)):
            continue
        file = files.get(str(path))
        if orphans.is_temporary(path):
            path.unlink(missing_ok=True)
        elif file is not None and not file.elsewhere and not file.subject.needs(file.file):
            file.file.unlink()
        elif file is not None:
            _leave(agent, str(path), NotFoundError(f"says {file.spec.sandbox_id}, which does not need it"))
        else:
            _leave(agent, str(path), NotFoundError("nothing says whose it is"))


async def _rescan(agent: Agent) -> None:
    """Sandbox files that could not be read at the start and can now. Those of newer agents stay."""
    pause_s = RESCAN_S_FIRST
    while not agent.stopping:
        waiting = [
            o
            for o in agent.orphans.values()
            if Path(o.path).suffix == ".medes" and not isinstance(o.error, LASTING)
        ]
        if not waiting:
            return
        await agent.clock.sleep(pause_s)
        pause_s = min(RESCAN_S_MAX, pause_s * 2)
        for orphan in waiting:
            try:
                file = await agent.in_ops(_open_file, agent, orphan.path)
            except MedesError as error:
                _leave(agent, orphan.path, error)
                continue
            agent.orphans.pop(orphan.path, None)
            if file.spec.sandbox_id not in agent.entries:
                _journal_again(agent, orphan.path, file)
                known = agent.journal.state.sandboxes[file.spec.sandbox_id]
                await _recover_sandbox(agent, known, file, Recovered())


# --- bases -------------------------------------------------------------------------------------------------
async def _recover_bases(agent: Agent, files: dict[str, Found], found: Recovered) -> None:
    journalled = agent.journal.state.bases
    path_of = {base_id: known.path for base_id, known in journalled.items()}
    slabs = await agent.in_ops(orphans.own_files, agent.settings.shm_path)
    others = []
    for slab in (str(p) for p in slabs if p.suffix == ".slab" and str(p) not in path_of.values()):
        try:
            others.append(((await agent.in_ops(native.Slab.open, slab)).base_id, slab))
        except MedesError as error:
            _leave(agent, slab, error)
    # Those that bear the name that agents give them first: another is a copy, or was renamed.
    for base_id, slab in sorted(others, key=lambda s: s[1] != str(agent.bases.path_of(s[0]))):
        if base_id in path_of and await agent.in_ops(Path(path_of[base_id]).exists):
            _leave(agent, slab, AlreadyExistsError(f"a copy of {path_of[base_id]}"))
        else:
            path_of[base_id] = slab
    for base_id, path in path_of.items():
        try:
            await take_back.open_base(agent, base_id, path, _base_meta(agent, base_id, files))
        except NotFoundError as error:
            found.notes.append(f"base {base_id:016x}: {error}")
            agent.journal.post(records.base_gone(base_id))
            continue
        except MedesError as error:
            found.notes.append(f"base {base_id:016x}: {error}")
            agent.bases.waiting.add(base_id)
            _leave(agent, path, error)
            continue
        base = agent.bases.bases[base_id]
        if base_id not in journalled:
            agent.journal.post(base_record(base))
            found.notes.append(f"base {base_id:016x} was not in the journal")
        found.bases += 1


def _base_meta(agent: Agent, base_id: int, files: dict[str, Found]) -> BaseMeta | None:
    """What the journal, or a sandbox that pins it, says of a slab that has no meta of its own."""
    known = agent.journal.state.bases.get(base_id)
    if known is not None and "domain" in known.descriptor:
        function = str(known.descriptor.get("function", ""))
        return BaseMeta(str(known.descriptor["domain"]), function, known.sandbox_id)
    for file in files.values():
        if any(base_id in ids for ids in file.pins.values()):
            return BaseMeta(file.spec.domain, "", "")
    return None


def _recover_pins(agent: Agent, found: Recovered) -> None:
    """Others' pins, from the journal. One that has lost lines may have lost any of them: then all bases are kept."""
    journal = agent.journal
    for (node_id, holder), (domain, base_ids) in journal.state.pins.items():
        agent.pins.pin(node_id, holder, domain, base_ids)
    lost_pins = journal.damaged or journal.was_empty or journal.set_aside is not None
    kept: dict[str, list[int]] = {}
    for base in agent.bases.bases.values():
        if lost_pins:
            kept.setdefault(base.descriptor.domain, []).append(base.base_id)
    for domain, ids in kept.items():
        holder = f"{UNKNOWN_HOLDER} {domain}"
        agent.pins.pin(UNKNOWN_NODE, holder, domain, ids)
        agent.journal.post(records.pins(UNKNOWN_NODE, holder, domain, ids))
    if kept:
        found.notes.append(
            "pins of other nodes may be forgotten: bases are kept until they are removed by command"
        )


# --- sandboxes ---------------------------------------------------------------------------------------------
async def _recover_sandbox(agent: Agent, known: JournalSandbox, file: Found | None, found: Recovered) -> None:
    spec, subject = _made_of(agent, known.spec)
    path = file.file.path if file is not None else known.path
    known.pins = take_back.at_home(agent, known.pins)
    if file is not None:
        file.pins = take_back.at_home(agent, file.pins)
    if file is not None and file.subject.parts != subject.parts:
        file = None  # of another one that had this id before: an orphan, or removed with it
    if file is not None:
        subject.learn(file.file)
    entry = SandboxEntry(spec, subject, agent.node_id, S.WARM, agent.clock.now_s())
    agent.subjects_of(spec).follow(subject)
    await members.look_again(agent, [entry])
    unreadable = path in agent.orphans
    gone = await agent.in_ops(subject.gone)
    if gone and file is None and not unreadable:
        agent.journal.post(records.purged(spec.sandbox_id))
        agent.subjects_of(spec).forget(spec.sandbox_id)
        found.gone += 1
        return  # its pins at peers go by ReconcilePins
    warm_bytes = int(known.figures.get("warm_bytes", 0))
    entry.recover(
        warm_bytes=warm_bytes or await agent.in_ops(_warm_bytes, subject, file),
        dedup_count=int(known.figures.get("dedup_count", 0)),
        is_base=any(b.sandbox_id == spec.sandbox_id for b in agent.bases.bases.values()),
    )
    agent.entries[spec.sandbox_id] = entry
    if unreadable:
        orphan = agent.orphans.pop(path)
        _wait_for_file(agent, entry, known, orphan, found)
    elif file is None:
        await _recover_without_file(agent, entry, known, found)
    elif known.phase == records.LOST and known.lost_finally:
        _stays_lost(entry, known, path, found)
    elif not await agent.in_ops(_is_out, subject, file.file, known.phase):
        # Killed before the first page went, or after the last one came: the sandbox has all its memory.
        await agent.in_ops(file.file.continue_stopped)
        await agent.in_ops(file.file.unlink)
        agent.journal.post(records.warm(entry.id))
        found.rolled_back += 1
    else:
        await _recover_evicted(agent, entry, known, file, found)


def _warm_bytes(subject: Subject, file: Found | None) -> int:
    """(blocks) What it has in memory, and what of it is out; 0 where that cannot be told now."""
    counts = file.file.page_state_counts if file is not None else {}
    try:
        here = subject.private_bytes()
    except MedesError:
        return 0
    return here + (counts.get("evicted", 0) + counts.get("evicting", 0)) * native.PAGE_BYTES


def _is_out(subject: Subject, file: native.SandboxFile, phase: str) -> bool:
    """(blocks) Whether pages, or a child's, may be missing, or a frozen cgroup may hold it in a call of an op that began: it
    is taken back when that has ended. Placed pages say that a restore had begun; after the journal's word
    that it had ended they say nothing."""
    if subject.pages_out(file) or file.child_paths:
        return True
    if phase != records.WARM and file.page_state_counts.get("restored", 0):
        return True
    return file.may_be_stopped and subject.held_up(file) is not None


def _stays_lost(entry: SandboxEntry, known: JournalSandbox, path: str, found: Recovered) -> None:
    entry.recover_as_lost(known.lost_reason, path)
    found.lost += 1


async def _recover_without_file(
    agent: Agent, entry: SandboxEntry, known: JournalSandbox, found: Recovered
) -> None:
    committed = known.phase in (records.DEDUP, records.RESTORING, records.LOST)
    if committed and await agent.in_ops(entry.subject.pages_out, None):
        if known.phase == records.LOST and known.lost_finally:
            _stays_lost(entry, known, known.path, found)
            return
        entry.recover_as_dedup()
        error = NotFoundError("its sandbox file is gone", object=known.path)
        agent.lose(entry, str(error), final=False)
        _wait(agent, entry, known, error, known.path)
        found.lost += 1
        return
    if committed:
        found.notes.append(f"{entry.id}: no sandbox file, and nothing of its memory is out")
    agent.journal.post(records.warm(entry.id))
    found.warm += 1


def _wait_for_file(
    agent: Agent, entry: SandboxEntry, known: JournalSandbox, orphan: Orphan, found: Recovered
) -> None:
    """Its file cannot be opened now, or not by this version: it stays what it was."""
    entry.recover_as_dedup()
    if isinstance(orphan.error, take_back.PROVEN):
        agent.lose(entry, str(orphan.error), final=False)
        found.lost += 1
    else:
        found.waiting += 1
    _wait(agent, entry, known, orphan.error, orphan.path)


def _wait(agent: Agent, entry: SandboxEntry, known: JournalSandbox, error: MedesError, path: str) -> None:
    wanted = known.phase == records.RESTORING
    waiting.wait(agent, entry, error, path=path, wanted=wanted)
    pending = entry.pending
    assert pending is not None
    pending.holder, pending.pins = known.holder, known.pins
    agent.pins.pin(agent.node_id, known.holder, entry.spec.domain, known.pins.get(agent.node_id, []))


async def _recover_evicted(
    agent: Agent, entry: SandboxEntry, known: JournalSandbox, file: Found, found: Recovered
) -> None:
    kept_bytes, tick_bytes = (int(known.figures.get(name, 0)) for name in ("kept_bytes", "tick_bytes"))
    entry.recover_as_dedup(kept_bytes or file.file.file_bytes, tick_bytes)
    entry.wait_for(
        Pending(file.file.path, NotFoundError("not tried yet"), holder=file.holder, pins=file.pins)
    )
    agent.pins.pin(agent.node_id, file.holder, entry.spec.domain, file.pins.get(agent.node_id, []))
    async with entry.lock:
        await waiting.first_attempt(agent, entry, wanted=known.phase == records.RESTORING)
    if entry.state is S.LOST:
        found.lost += 1
    elif entry.state is S.PURGED:
        found.gone += 1
    elif entry.pending is not None:
        found.waiting += 1
    else:
        found.dedup += 1


# --- pins at peers -----------------------------------------------------------------------------------------
async def reconcile_pins(agent: Agent) -> None:
    """Tells every known peer once which pins this node holds there; tries again until each has answered."""
    waiting = set(agent.peers.endpoints)
    if waiting:
        # A peer asks the controller who goes by this name: until this node has joined that is the one before.
        await agent.controller.joined_within(JOIN_WAIT_S)
    while waiting and not agent.stopping:
        if not all_pins_known(agent):
            await agent.clock.sleep(RECONCILE_RETRY_S)  # what it would leave out, peers would give up
            continue
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
    """By the word of the peer. It may be another's that took its name: they are looked at again."""
    for entry in list(agent.entries.values()):
        evicted = entry.evicted
        if evicted is not None and missing.intersection(evicted.pins.get(node_id, [])):
            pinned_at = evicted.endpoints.get(node_id)
            if pinned_at is not None and not same_store(
                pinned_at.store, agent.peers.endpoints[node_id].store
            ):
                log.error("%s: node %s has another store than the one with its base pages", entry.id, node_id)
                continue  # that one may come back
            error = NotFoundError(f"{node_id} no longer has its base pages", object=entry.id)
            agent.lose(entry, error.message, final=False)
            waiting.wait(agent, entry, error)
