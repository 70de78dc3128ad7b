"""A driver without userfaultfd for the agent's own tests: it remembers the image and "restores" on command."""

from __future__ import annotations

import os
import struct
import threading

from medes import native
from medes.drivers.driver import AWAKE_AT_ONCE, Sleep
from medes.drivers.process.subject import ProcessSubject
from medes.drivers.process.subjects import ProcessSubjects
from medes.errors import CancelledError, LostError, MedesError


class StandInHandle:
    """As native.LiveSandbox, but the process keeps its memory."""

    def __init__(self, driver: StandInDriver, path: str, page_count: int) -> None:
        self.driver = driver
        self.path = path
        self.page_count = page_count
        self.state = "dormant"
        self.lost_reason = ""
        self.lost_code = "ok"
        self.needed = False
        self.short_of_memory = False
        self.notes = ["a page is mlocked"]
        self.sleep = AWAKE_AT_ONCE
        self.touched_set = b""
        self.placed_pages = 0
        self.reclaimable_pages = 0
        self.reclaimed_set = b""
        self.reclaims = 0
        self.reclaim_error: MedesError | None = None
        self.faulted = struct.pack("<4Q", 1, 10, 1, 11)
        self.evict_result = {
            "evicted_pages": page_count,
            "resident_pages": 2,
            "resident_bytes": 2 * native.PAGE_BYTES,
            "changed_pages": 1,
            "tick_pages": driver.tick_pages,
            "stopped_us": 10,
        }
        self.prefetched = b""
        self.woken = False
        self.detached = False
        self._done = threading.Event()

    def restore(self, lazy: bool = True, working_set: bytes = b"", background_bytes_per_s: int = 0) -> None:
        self.state = "restoring"
        self.prefetched = working_set
        if not self.driver.hold_restores:
            self.finish()

    def finish(self) -> None:
        self.state = "lost" if self.driver.fail_restores else "complete"
        self._done.set()

    def wake(self) -> None:
        self.woken = True
        self.state = "restoring"
        self.driver.post(self.path, "demand_woken")
        self.finish()

    def wait_ready(self, timeout_s: float) -> bool:
        return True

    def wait_complete(self, timeout_s: float) -> bool:
        if not self._done.wait(min(timeout_s, 5.0)):
            return False
        if self.detached and self.state == "restoring":
            raise CancelledError("let go of", object=self.path)
        if self.state == "lost":
            raise LostError("a page fails its checksum", object=self.path)
        return True

    def stats(self) -> dict[str, int]:
        done = self._done.is_set()
        return {
            "pages_total": self.page_count,
            "demand_woken": self.woken,
            "complete_us": 5 if done else 0,
            "short_of_memory": self.short_of_memory,
        }

    def working_set(self) -> bytes:
        return self.faulted

    def touched(self) -> bytes:
        return self.touched_set

    def reclaim(
        self, pages_min: int = 1, pages_max: int = 0, cancel: native.CancelFlag | None = None
    ) -> tuple[dict[str, int], list[str]]:
        self.reclaims += 1
        if self.reclaim_error is not None:
            raise self.reclaim_error
        taken = min(self.reclaimable_pages, pages_max or self.reclaimable_pages)
        self.placed_pages -= taken
        self.reclaimable_pages -= taken
        return {"reclaimed_pages": taken, "changed_pages": 2, "stopped_us": 7}, ["a page is mlocked"]

    def reclaimed(self) -> bytes:
        return self.reclaimed_set

    def detach(self) -> None:
        self.detached = True
        self._done.set()


class StandInDriver:
    """Captures for real; evicts nothing."""

    name = "image"
    subjects = ProcessSubjects
    frees = True  # so its figures say

    def __init__(self) -> None:
        self._read, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._events: list[tuple[str, str]] = []
        self.handles: list[StandInHandle] = []
        self.hold_restores = False
        self.fail_restores = False
        self.fail_evict: Exception | None = None
        self.fail_adopt: Exception | None = None
        self.evict_gate: threading.Event | None = None
        self.capture_gate: threading.Event | None = None
        self.capturing = threading.Event()
        self.tick_pages = 0  # that stay

    def capture(self, subject: ProcessSubject, fork_sharers_max: int | None = None) -> native.MemoryImage:
        self.capturing.set()
        if self.capture_gate is not None:
            self.capture_gate.wait(10.0)
        return native.capture(subject.members())

    def evict(
        self,
        subject: ProcessSubject,
        image: native.MemoryImage,
        file: native.SandboxFile,
        bases: native.BaseSet,
        hold_frozen: bool = False,
        cancel: native.CancelFlag | None = None,
        sleep: Sleep = AWAKE_AT_ONCE,
    ) -> StandInHandle:
        if self.evict_gate is not None:
            self.evict_gate.wait(10.0)
        if self.fail_evict is not None:
            raise self.fail_evict
        if cancel is not None and cancel.cancelled:
            raise CancelledError("cancelled")
        handle = self._handle(file)
        handle.sleep = sleep
        return handle

    def adopt(
        self,
        subject: ProcessSubject,
        file: native.SandboxFile,
        bases: native.BaseSet,
        sleep: Sleep = AWAKE_AT_ONCE,
    ) -> StandInHandle:
        if self.fail_adopt is not None:
            raise self.fail_adopt
        return self._handle(file)

    def _handle(self, file: native.SandboxFile) -> StandInHandle:
        handle = StandInHandle(self, file.path, file.page_count)
        self.handles.append(handle)
        return handle

    @property
    def event_fd(self) -> int:
        return self._read

    def post(self, path: str, event: str) -> None:
        self._events.append((path, event))
        os.write(self._write, b"x")

    def take_events(self) -> list[tuple[str, str]]:
        os.read(self._read, 4096)
        events, self._events = self._events, []
        return events

    def release_gone(self) -> None:
        pass

    def close(self) -> None:
        if self._read >= 0:
            os.close(self._read)
            os.close(self._write)
            self._read = self._write = -1
