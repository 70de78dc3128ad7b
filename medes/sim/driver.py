"""The driver of a simulation: its sandboxes are the programs of a `Machine`, their bytes are real, the time they take is not.

Images, patches, base pages and checksums are those of the real codec; what is made up is when an op ends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medes import native
from medes.clock import Clock
from medes.drivers.driver import AWAKE_AT_ONCE, Sleep
from medes.drivers.subject import Asked, Subject, Subjects
from medes.drivers.untouched import Untouched
from medes.errors import CancelledError, LostError, MedesError, NotFoundError, ProcessGoneError
from medes.sim.machine import Machine, Program


@dataclass(frozen=True, slots=True)
class Costs:
    """What ops take of the simulated time."""

    capture_us_per_page: float = 0.5
    evict_us_per_page: float = 1.0
    restore_us_per_page: float = 5.0
    ready_us: float = 1_500.0  # until a restored program runs


class SimSubject(Subject):
    """One program."""

    def __init__(self, sandbox_id: str, program: Program) -> None:
        self.sandbox_id = sandbox_id
        self.name = program.name
        self.program = program

    @property
    def parts(self) -> tuple[str, ...]:
        return (f"program {self.name}",)

    def to_json(self) -> dict[str, Any]:
        return {"program": self.name}

    def gone(self) -> bool:
        return not self.program.living

    def pages_out(self, file: native.SandboxFile | None) -> bool:
        return self.program.out

    def private_bytes(self) -> int:
        if self.gone():
            raise ProcessGoneError("the program has ended", object=self.name)
        return 0 if self.program.out else self.program.page_count * native.PAGE_BYTES

    def end(self, owner: int | None, file: native.SandboxFile | None) -> None:
        self.program.living = False


class SimSubjects(Subjects):
    """The programs of a machine that run."""

    machine: Machine  # of the class that `subjects_on` made

    def registered(self, sandbox_id: str, asked: Asked) -> SimSubject:
        program = self.machine.programs.get(asked.subject)
        if program is None or not program.living:
            raise NotFoundError("no such program", object=asked.subject)
        return SimSubject(sandbox_id, program)

    def from_json(self, sandbox_id: str, record: Mapping[str, Any]) -> SimSubject:
        return SimSubject(sandbox_id, self.machine.programs[record["program"]])

    def look(self, subjects: Sequence[Subject]) -> list[Subject]:
        return []


def subjects_on(machine: Machine) -> type[SimSubjects]:
    """What a driver's `subjects` are on this machine."""
    return type("SimSubjectsHere", (SimSubjects,), {"machine": machine})


class SimDriver:
    """Use from the simulation's loop."""

    name = "sim"
    frees = True
    event_fd = -1

    def __init__(self, machine: Machine, clock: Clock, costs: Costs) -> None:
        self.subjects = subjects_on(machine)
        self._clock = clock
        self.costs = costs

    def takes_s(self, call: str) -> float:
        """For medes.sim.work: of the ops that have no handle yet."""
        return 0.0

    def capture(self, subject: SimSubject, fork_sharers_max: int | None = None) -> native.MemoryImage:
        if subject.gone():
            raise ProcessGoneError("the program has ended", object=subject.name)
        return native.MemoryImage.from_buffer(subject.program.contents())

    def evict(
        self,
        subject: SimSubject,
        image: native.MemoryImage,
        file: native.SandboxFile,
        bases: native.BaseSet,
        hold_frozen: bool = False,
        cancel: native.CancelFlag | None = None,
        sleep: Sleep = AWAKE_AT_ONCE,
    ) -> SimHandle:
        if cancel is not None and cancel.cancelled:
            raise CancelledError("cancelled before the eviction", object=file.path)
        subject.program.out = True
        return SimHandle(self, self._clock, subject.program, file, bases)

    def adopt(
        self,
        subject: SimSubject,
        file: native.SandboxFile,
        bases: native.BaseSet,
        sleep: Sleep = AWAKE_AT_ONCE,
    ) -> SimHandle:
        if subject.gone():
            raise ProcessGoneError("the program has ended", object=subject.name)
        return SimHandle(self, self._clock, subject.program, file, bases)

    def take_events(self) -> list[tuple[str, str]]:
        return []

    def release_gone(self) -> None:
        """Nothing is held."""

    def close(self) -> None:
        """Nothing is held."""


class SimHandle(Untouched):
    """A program whose pages are out."""

    def __init__(
        self,
        driver: SimDriver,
        clock: Clock,
        program: Program,
        file: native.SandboxFile,
        bases: native.BaseSet,
    ) -> None:
        self._costs = driver.costs
        self._clock = clock
        self._program = program
        self._file = file
        self._bases = bases
        self._began_s: float | None = None
        self._detached = False
        self.state = "dormant"
        self.notes: list[str] = []
        self.lost_reason = ""
        self.lost_code = "ok"
        self.evict_result = {
            "evicted_pages": file.page_count,
            "resident_pages": 0,
            "resident_bytes": 0,
            "changed_pages": 0,
            "stopped_us": int(file.page_count * driver.costs.evict_us_per_page),
        }

    @property
    def needed(self) -> bool:
        return self._program.living and self._program.out

    @property
    def _complete_us(self) -> float:
        return self._costs.ready_us + self._file.page_count * self._costs.restore_us_per_page

    def takes_s(self, call: str) -> float:
        """How long a wait still takes: see medes.sim.work."""
        if self._began_s is None or self._detached:
            return 0.0
        whole_us = {"wait_ready": self._costs.ready_us, "wait_complete": self._complete_us}.get(call, 0.0)
        return max(0.0, self._began_s + whole_us / 1e6 - self._clock.now_s())

    def restore(self, lazy: bool = True, working_set: bytes = b"", background_bytes_per_s: int = 0) -> None:
        if self._began_s is None:
            self._began_s, self.state = self._clock.now_s(), "restoring"

    def wait_ready(self, timeout_s: float) -> bool:
        if self._detached:
            raise CancelledError("it was detached", object=self._file.path)
        return True

    def wait_complete(self, timeout_s: float) -> bool:
        """Every page is rebuilt from patches and bases, and is what the program had."""
        self.wait_ready(timeout_s)
        if not self._program.living:
            raise ProcessGoneError("the program has ended", object=self._program.name)
        try:
            self._file.verify(self._bases, native.MemoryImage.from_buffer(self._program.contents()))
        except MedesError as error:
            self.state, self.lost_reason, self.lost_code = "lost", str(error), error.code
            raise LostError(str(error), object=self._file.path) from error
        self._program.out, self.state = False, "complete"
        return True

    def stats(self) -> dict[str, int]:
        return {
            "pages_total": self._file.page_count,
            "ready_us": int(self._costs.ready_us),
            "complete_us": int(self._complete_us),
        }

    def detach(self) -> None:
        self._detached = True
