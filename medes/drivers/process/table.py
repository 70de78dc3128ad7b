"""Which processes are a sandbox's: its roots, what these forked, and what goes on when they have ended.

Once a parent has exited the kernel tells nobody whose child a process was. So what is below the roots is noted in the
sandbox's spec whenever it is looked at (every few seconds, before an op, before a purge), and journalled with it. What has
left the tree between two looks is found by its session, where a root leads it: a session is inherited, and its
number is nobody else's while it has a process. A sandbox that is a cgroup needs none of this.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from medes import native
from medes.agent.core import Agent
from medes.agent.sandbox import SandboxEntry, SandboxSpec
from medes.limits import PIDS_PER_SANDBOX_MAX

Others = tuple[tuple[int, int], ...]  # (pid, start time in clock ticks)


@dataclass(frozen=True, slots=True)
class Found:
    """What one look told of a sandbox."""

    entry: SandboxEntry
    spec: SandboxSpec  # as it was
    others: Others
    seen: tuple[int, ...]  # see SandboxSpec


class ProcessTable:
    """(blocks) All processes that live, in one look."""

    def __init__(self) -> None:
        self.forks, self._numbers = _forks()
        self.start_times: dict[int, int] = {}
        self._children: dict[int, list[int]] = defaultdict(list)
        self._sessions: dict[int, list[int]] = defaultdict(list)
        for pid, parent, session, ticks in native.living_processes():
            self.start_times[pid] = ticks
            self._children[parent].append(pid)
            self._sessions[session].append(pid)

    def no_number_came_again(self, since_forks: int) -> bool:
        """Whether no process can have the number of one that ran when `forks` was this (0: since the machine's start): they
        are given out in turn."""
        return self.forks > 0 and self.forks - since_forks < self._numbers // 2

    def worth_noting(self, forks: int, noted_forks: int) -> bool:
        """Whether what was seen last is so much later than what is written down."""
        return forks - noted_forks > self._numbers // 8

    def below(self, pids: Iterable[int], not_these: frozenset[int]) -> list[int]:
        """These and what descends from them, without others' processes and what is below those."""
        found, seen = list(pids), set(pids)
        for pid in found:  # grows
            new = [p for p in self._children[pid] if p not in seen and p not in not_these]
            found += new
            seen.update(new)
        return found

    def in_session(self, pid: int) -> list[int]:
        return list(self._sessions[pid])

    def runs(self, pid: int, ticks: int) -> bool:
        return ticks != 0 and self.start_times.get(pid) == ticks


def _forks() -> tuple[int, int]:
    """How many processes the machine has made, and how many numbers there are for them; 0 where it does not say."""
    try:
        lines = Path("/proc/stat").read_text().splitlines()
        forks = next((int(line.split()[1]) for line in lines if line.startswith("processes ")), 0)
        return forks, int(Path("/proc/sys/kernel/pid_max").read_text())
    except (OSError, ValueError):
        return 0, 0


def _found(entry: SandboxEntry, table: ProcessTable, not_these: frozenset[int]) -> Found:
    """`not_these`: roots of other sandboxes, which may be children of this one's."""
    spec = entry.spec
    roots = [p for p, t in zip(spec.pids, spec.start_times, strict=True) if table.runs(p, t)]
    entry.roots_seen.update(dict.fromkeys(roots, table.forks))
    others = [p for p, t in spec.others if table.runs(p, t) and p not in not_these]
    members = table.below([*roots, *others], not_these)
    seen = [
        max(before, entry.roots_seen.get(p, 0)) for p, before in zip(spec.pids, spec.seen_so(), strict=True)
    ]
    for leader, forks in zip(spec.pids, seen, strict=True):
        session = [p for p in table.in_session(leader) if p not in not_these]
        # The session is the root's own: one of its processes was seen in it, or nobody else can have led it since.
        if not set(members).isdisjoint(session) or table.no_number_came_again(forks):
            members = table.below(dict.fromkeys([*members, *session]), not_these)
    found = [(p, table.start_times[p]) for p in members if p not in roots]
    noted = spec.seen_so()
    if not any(table.worth_noting(now, before) for now, before in zip(seen, noted, strict=True)):
        seen = list(noted)
    return Found(entry, spec, tuple(found[: PIDS_PER_SANDBOX_MAX - len(spec.pids)]), tuple(seen))


def look(agent: Agent, entries: list[SandboxEntry]) -> list[Found]:
    """(blocks) What belongs to each sandbox now, for `note`."""
    entries = [e for e in entries if not e.spec.cgroup]
    if not entries:
        return []
    table = ProcessTable()
    journalled = list(agent.journal.state.sandboxes.items())
    roots = {int(p): id for id, known in journalled for p in known.spec.get("pids", ())}
    roots |= {p: e.id for e in list(agent.entries.values()) for p in e.spec.pids}
    return [_found(e, table, frozenset(p for p, owner in roots.items() if owner != e.id)) for e in entries]


def note(agent: Agent, found: list[Found]) -> None:
    """Books what `look` found."""
    for f in found:
        if f.entry.spec is f.spec and (f.others, f.seen) != (f.spec.others, f.spec.seen_so()):
            f.entry.spec = replace(f.spec, others=f.others, seen=f.seen)
            if f.entry.id in agent.journal.state.sandboxes:
                agent.journal.post({"t": "sandbox", "spec": f.entry.spec.to_json()})


async def look_again(agent: Agent, entry: SandboxEntry) -> None:
    """Brings one sandbox's members up to date."""
    note(agent, await agent.in_restores(look, agent, [entry]))
