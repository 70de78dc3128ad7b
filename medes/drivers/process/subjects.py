"""Which processes are a sandbox's: its roots, what these forked, and what goes on when they have ended.

Once a parent has exited the kernel tells nobody whose child a process was. So what is below the roots is noted with the
sandbox whenever it is looked at (every few seconds, before an op, before a purge), and journalled with it. What has
left the tree between two looks is found by its session, where a root leads it: a session is inherited, and its
number is nobody else's while it has a process; and by what the kernel tells of forks (medes.drivers.process.forks), where it
does. A sandbox that is a cgroup needs none of this.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from medes import native
from medes.drivers.process import cgroups
from medes.drivers.process.forks import Forks
from medes.drivers.process.processes import (
    ancestors,
    is_in_cgroups,
    namespace,
    refuse_own,
    require_processes_of,
    start_time,
)
from medes.drivers.process.subject import Known, Process, ProcessSubject
from medes.drivers.process.table import IsOthers, ProcessTable
from medes.drivers.process.traffic import Carried
from medes.drivers.subject import Asked, Subject, Subjects
from medes.errors import AlreadyExistsError, InvalidArgumentError, MedesError, NotFoundError
from medes.limits import PIDS_PER_SANDBOX_MAX


class ProcessSubjects(Subjects):
    """The node's sandboxes that are processes, with what tells them apart: a root of one may be a child of another's."""

    def __init__(self) -> None:
        self._followed: dict[str, ProcessSubject] = {}
        self._forks = Forks(start_time)

    def registered(self, sandbox_id: str, asked: Asked) -> ProcessSubject:
        _refuse_other_names(asked)
        start_times = tuple(_checked_pid(pid) for pid in asked.pids)
        cgroup = cgroups.resolve(asked.cgroup) if asked.cgroup else ""
        refuse_own(native.cgroup_pids(cgroup) if cgroup else asked.pids)
        return self._make(sandbox_id, asked.pids, start_times, cgroup, Known())

    def from_json(self, sandbox_id: str, record: Mapping[str, Any]) -> ProcessSubject:
        pids, start_times, seen = (tuple(record.get(name, ())) for name in ("pids", "start_times", "seen"))
        if len(pids) != len(start_times):
            raise ValueError(f"{len(pids)} pids with {len(start_times)} start times")
        others = tuple((int(pid), int(ticks)) for pid, ticks in record.get("others", ()))
        return self._make(sandbox_id, pids, start_times, str(record.get("cgroup", "")), Known(others, seen))

    def _make(
        self,
        sandbox_id: str,
        pids: tuple[int, ...],
        start_times: tuple[int, ...],
        cgroup: str,
        known: Known,
    ) -> ProcessSubject:
        return ProcessSubject(
            sandbox_id, pids, start_times, cgroup, known, lambda s: self._look([s]), self._roots_of_others
        )

    def admit(self, uid: int, asked: Asked, own: Sequence[Subject]) -> int:
        _refuse_other_names(asked)
        require_processes_of(uid, asked.pids)
        pids = (
            native.cgroup_pids(cgroups.resolve(asked.cgroup))
            if asked.cgroup
            else native.process_tree(list(asked.pids))
        )
        require_processes_of(uid, pids)
        users = {subject.sandbox_id for subject in own}
        others = [s for s in list(self._followed.values()) if s.sandbox_id not in users]
        roots = {pid for s in others for pid in s.processes}
        folders = [s.cgroup for s in others if s.cgroup]
        for pid in pids:
            # It may be a function's own code, or have a sandbox of somebody else below it.
            if not roots.isdisjoint(ancestors(pid)) or is_in_cgroups(pid, folders):
                raise AlreadyExistsError("this process belongs to somebody's sandbox", object=f"pid {pid}")
        return native.private_bytes(pids)

    def follow(self, subject: Subject) -> None:
        self._followed[subject.sandbox_id] = cast(ProcessSubject, subject)

    def forget(self, sandbox_id: str) -> None:
        self._followed.pop(sandbox_id, None)
        self._forks.forget(sandbox_id)

    def place(self) -> str:
        return namespace()

    def close(self) -> None:
        self._forks.close()

    # --- looking -------------------------------------------------------------------------------------------
    def look(self, subjects: Sequence[Subject]) -> list[Subject]:
        looked_at = cast(Sequence[ProcessSubject], subjects)
        self._look(looked_at)
        changed: list[Subject] = []
        for subject in looked_at:
            if subject.told != (known := subject.known):
                subject.told = known
                changed.append(subject)
        return changed

    def carried(self, subjects: Sequence[Subject]) -> list[Mapping[int, int]]:
        carried = Carried()
        return [carried.by(_living(cast(ProcessSubject, s))) for s in subjects]

    def _look(self, subjects: Sequence[ProcessSubject]) -> None:
        subjects = [s for s in subjects if not s.cgroup]
        if not subjects:
            return
        forked = {
            s.sandbox_id: self._forks.seen(s.sandbox_id) for s in subjects
        }  # before the table, which has them then
        table = ProcessTable()
        roots = {pid: s.sandbox_id for s in list(self._followed.values()) for pid in s.processes}
        for subject in subjects:
            before = subject.known
            # Not a set of the others' made for each: a node has thousands of sandboxes.
            now = _found(
                subject, before, table, _roots_but_of(subject.sandbox_id, roots), forked[subject.sandbox_id]
            )
            self._forks.follow(subject.sandbox_id, [*subject.roots, *before.others, *now.others])
            if (now.others, now.seen) != (before.others, subject.seen()):
                subject.found(before, now)

    def _roots_of_others(self, subject: ProcessSubject) -> set[int]:
        followed = list(self._followed.values())
        return {pid for s in followed if s.sandbox_id != subject.sandbox_id for pid in s.processes}


def _refuse_other_names(asked: Asked) -> None:
    if asked.subject:
        raise InvalidArgumentError(
            "sandboxes of this driver are processes", object="subject", hint="give pids or a cgroup"
        )


def _checked_pid(pid: int) -> int:
    if pid <= 0:
        raise InvalidArgumentError("not the pid of a process", object=f"pid {pid}")
    ticks = start_time(pid)
    if ticks == 0:
        raise NotFoundError("no such process", object=f"pid {pid}")
    return ticks


def _living(subject: ProcessSubject) -> list[int]:
    try:
        return subject.living()
    except MedesError:
        return []


def _roots_but_of(own_id: str, roots: Mapping[int, str]) -> IsOthers:
    return lambda pid: roots.get(pid, own_id) != own_id


def _found(
    subject: ProcessSubject,
    before: Known,
    table: ProcessTable,
    is_others: IsOthers,
    forked: Sequence[Process],
) -> Known:
    """What belongs to a sandbox now. Roots of other sandboxes may be children of this one's."""
    pids, noted = subject.processes, subject.seen()
    roots = [p for p, t in subject.roots if table.runs(p, t)]
    subject.roots_seen.update(dict.fromkeys(roots, table.forks))
    known = dict.fromkeys([*before.others, *forked])
    others = [p for p, t in known if table.runs(p, t) and not table.is_below(p, is_others, pids)]
    members = table.below([*roots, *others], is_others)
    seen = [max(forks, subject.roots_seen.get(p, 0)) for p, forks in zip(pids, noted, strict=True)]
    for leader, forks in zip(pids, seen, strict=True):
        session = [p for p in table.in_session(leader) if not is_others(p)]
        # The session is the root's own: one of its processes was seen in it, or nobody else can have led it since.
        if not set(members).isdisjoint(session) or table.no_number_came_again(forks):
            members = table.below(dict.fromkeys([*members, *session]), is_others)
    found = [(p, table.start_times[p]) for p in members if p not in roots]
    if not any(table.worth_noting(now, then) for now, then in zip(seen, noted, strict=True)):
        seen = list(noted)
    return Known(tuple(found[: PIDS_PER_SANDBOX_MAX - len(pids)]), tuple(seen))
