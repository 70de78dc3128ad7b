"""All processes of the machine, in one look."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

from medes import native

IsOthers = Callable[[int], bool]  # whether this pid is a root of another sandbox


class ProcessTable:
    """(blocks) All processes that live, in one look."""

    def __init__(self) -> None:
        self.forks, self._numbers = _forks()
        self.start_times: dict[int, int] = {}
        self._parents: dict[int, int] = {}
        self._children: dict[int, list[int]] = defaultdict(list)
        self._sessions: dict[int, list[int]] = defaultdict(list)
        for pid, parent, session, ticks in native.living_processes():
            self.start_times[pid] = ticks
            self._parents[pid] = parent
            self._children[parent].append(pid)
            self._sessions[session].append(pid)

    def no_number_came_again(self, since_forks: int) -> bool:
        """Whether no process can have the number of one that ran when `forks` was this (0: since the machine's start): they
        are given out in turn."""
        return self.forks > 0 and self.forks - since_forks < self._numbers // 2

    def worth_noting(self, forks: int, noted_forks: int) -> bool:
        """Whether what was seen last is so much later than what is written down."""
        return forks - noted_forks > self._numbers // 8

    def below(self, pids: Iterable[int], is_others: IsOthers) -> list[int]:
        """These and what descends from them, without others' processes and what is below those."""
        found, seen = list(pids), set(pids)
        for pid in found:  # grows
            new = [p for p in self._children[pid] if p not in seen and not is_others(p)]
            found += new
            seen.update(new)
        return found

    def is_below(self, pid: int, is_others: IsOthers, own: Iterable[int]) -> bool:
        """Whether it is one of another's or descends from one, with none of one's own between."""
        while pid and pid not in own:
            if is_others(pid):
                return True
            pid = self._parents.get(pid, 0)
        return False

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
