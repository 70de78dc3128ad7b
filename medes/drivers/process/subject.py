"""A sandbox that is processes: roots and what they forked, or all of a cgroup."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from medes import native
from medes.drivers.process.processes import (
    cpu_s,
    end_all,
    is_ending,
    is_guarded,
    require_processes_of,
    runs,
    start_time,
)
from medes.drivers.subject import Subject
from medes.errors import BusyError, InvalidArgumentError, MedesError, NotFoundError, ProcessGoneError

Process = tuple[int, int]  # pid, start time in clock ticks: a pid alone may by now be somebody else's process


@dataclass(frozen=True, slots=True)
class Known:
    """What looks have told of a sandbox that is not a cgroup."""

    others: tuple[Process, ...] = ()  # what the roots forked
    seen: tuple[
        int, ...
    ] = ()  # per root: what the machine had forked when it was last seen running, or some time before


class ProcessSubject(Subject):
    """Its roots, or its cgroup, are for good; `known` is replaced by each look that finds something new."""

    def __init__(
        self,
        sandbox_id: str,
        pids: tuple[int, ...],
        start_times: tuple[int, ...],
        cgroup: str,
        known: Known,
        look: Callable[[ProcessSubject], object],
        roots_of_others: Callable[[ProcessSubject], set[int]],
    ) -> None:
        self.sandbox_id = sandbox_id
        self.processes = pids
        self.start_times = start_times  # of the roots
        self.cgroup = cgroup
        self.known = known
        self.told = known  # what the journal has, or is about to
        self.roots_seen: dict[
            int, int
        ] = {}  # root → what the whole machine had forked when that was last seen running
        self._look = look
        self._roots_of_others = roots_of_others
        self._lock = threading.Lock()

    # --- who it is -----------------------------------------------------------------------------------------
    @property
    def parts(self) -> tuple[str, ...]:
        if self.cgroup:
            return (f"cgroup {self.cgroup}",)
        return tuple(f"pid {pid}, started at tick {ticks}" for pid, ticks in self.roots)

    @property
    def roots(self) -> list[Process]:
        return list(zip(self.processes, self.start_times, strict=True))

    def to_json(self) -> dict[str, Any]:
        return {
            "pids": self.processes,
            "start_times": self.start_times,
            "cgroup": self.cgroup,
            "others": self.known.others,
            "seen": self.known.seen,
        }

    def all_known(self) -> list[Process]:
        """The roots, then what is known of those they forked."""
        return [*self.roots, *self.known.others]

    def seen(self) -> tuple[int, ...]:
        """`known.seen`, of every root."""
        seen = self.known.seen
        return seen if len(seen) == len(self.processes) else (0,) * len(self.processes)

    def found(self, before: Known, now: Known) -> None:
        """Takes over what a look found that began with `before`, unless another came between."""
        with self._lock:
            if self.known is before:
                self.known = now

    # --- whether it lives ----------------------------------------------------------------------------------
    def living(self) -> list[int]:
        """(blocks) The roots and what is known of those they forked, as far as they still run; those that cannot be looked at
        now count as running. A cgroup's sandbox: its processes. Raises what keeps its cgroup from being read."""
        if self.cgroup:
            try:
                return native.cgroup_pids(self.cgroup)
            except NotFoundError:
                return []
        return [p for p, t in self.all_known() if runs(p, t)]

    def gone(self) -> bool:
        """What it forked in its last instant is found by a look that begins after that."""
        try:
            if not self.cgroup and not self.living():
                self._look(self)
            return not self.living()
        except MedesError:
            return False

    def ending(self) -> bool:
        try:
            return all(is_ending(p) for p in self.living())
        except MedesError:
            return False

    def needs(self, file: native.SandboxFile) -> bool:
        return any(runs(p, t) for p, t in zip(file.pids, file.start_times, strict=True))

    def pages_out(self, file: native.SandboxFile | None) -> bool:
        """Without a file: whether a userfaultfd still guards mappings of its processes."""
        if file is not None:
            return super().pages_out(file)
        try:
            return any(is_guarded(pid) for pid in self._all())
        except ProcessGoneError:
            return False
        except (MedesError, OSError):
            return True

    def held_up(self, file: native.SandboxFile) -> BusyError | None:
        for pid in file.pids:
            if cgroup := native.frozen_cgroup(pid):
                return BusyError(
                    f"its cgroup {cgroup} is frozen, and held it in the middle of a dedup op",
                    object=f"pid {pid}",
                    hint="thaw it (docker unpause): the op goes on then, and a call made after that is answered",
                )
        return None

    def learn(self, file: native.SandboxFile) -> None:
        in_file = zip(file.pids, file.start_times, strict=True)
        before = self.known
        others = tuple(p for p in {*before.others, *in_file} if p[0] not in self.processes)
        self.found(before, Known(others, before.seen))

    # --- its processes -------------------------------------------------------------------------------------
    def _all(self) -> list[int]:
        """(blocks) All processes of the sandbox, roots first. Raises process_gone when none is left."""
        living = self.living()
        if not living:
            raise ProcessGoneError("its processes have exited", object=self.sandbox_id)
        if self.cgroup:
            pids = living
        else:
            roots = [p for p in living if p in self.processes]
            pids = native.process_tree(roots) if roots else []
            if left := [p for p in living if p not in pids]:  # what they forked has outlived its parents
                pids += [p for p in native.process_tree(left) if p not in pids]
        if os.getpid() in pids:
            # Whoever moved the agent into the sandbox's cgroup: it would stop itself, for good.
            raise InvalidArgumentError("the agent itself is in this sandbox", object=self.sandbox_id)
        return pids

    def members(self) -> list[int]:
        """(blocks) The sandbox's processes, roots first, without those below them that are another sandbox's. Raises
        process_gone when none is left."""
        pids = self._all()
        if not (theirs := self._roots_of_others(self).intersection(pids)):
            return pids
        left_out = set(native.process_tree(sorted(theirs)))
        own = [pid for pid in pids if pid not in left_out]
        if not own:
            raise ProcessGoneError("what is left of it belongs to other sandboxes", object=self.sandbox_id)
        return own

    def private_bytes(self) -> int:
        return native.private_bytes(self.members())

    def cpu_s(self) -> float | None:
        return sum(map(cpu_s, self.living()))

    def memory_room(self) -> int | None:
        return native.memory_room(self.members()[0])

    def require_owner(self, uid: int) -> None:
        require_processes_of(uid, self._all())

    def end(self, owner: int | None, file: native.SandboxFile | None) -> None:
        def look() -> list[Process]:
            # A cgroup's are told by the cgroup. Of the others, what is below a root may be another sandbox's.
            self._look(self)
            known = self.all_known()
            if self.cgroup:
                with contextlib.suppress(ProcessGoneError):
                    known += [(pid, start_time(pid)) for pid in self._all()]
            if file is not None:
                known += zip(file.pids, file.start_times, strict=True)
            return [process for process in dict.fromkeys(known) if runs(*process)]

        end_all(look, owner)
