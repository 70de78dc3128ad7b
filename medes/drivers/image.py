"""The image driver: the whole dedup pipeline on captured memory images, where the live driver cannot run.

The sandbox's processes keep their memory, so nothing is saved and nothing can be lost. What a restore does is real:
every page is rebuilt from the sandbox file and the base pages, and compared with the image that was captured.
"""

from __future__ import annotations

import threading
import time

from medes import native
from medes.errors import CancelledError, MedesError


class ImageSandbox:
    """One dedup'd image. Thread-safe; interface of native.LiveSandbox."""

    def __init__(
        self, file: native.SandboxFile, bases: native.BaseSet, image: native.MemoryImage | None
    ) -> None:
        self.lost_reason = ""
        self.lost_code = "ok"
        self.notes: list[str] = []
        self._file = file
        self._bases = bases
        self._image = image
        self._state = "dormant"
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._error: MedesError | None = None
        self._restore_us = 0

    @property
    def state(self) -> str:
        return self._state

    @property
    def needed(self) -> bool:
        """Its processes have all their memory."""
        return False

    @property
    def evict_result(self) -> dict[str, int]:
        """Nothing was evicted and nothing stood still."""
        return {"evicted_pages": 0, "changed_pages": 0, "stopped_us": 0}

    def restore(self, lazy: bool = True, working_set: bytes = b"", background_bytes_per_s: int = 0) -> None:
        """Starts rebuilding on a thread of its own; lazy and the working set mean nothing here."""
        with self._lock:
            if self._state != "dormant":
                return
            self._state = "restoring"
        threading.Thread(target=self._rebuild, name="medes-image-restore", daemon=True).start()

    def _rebuild(self) -> None:
        start_s = time.perf_counter()
        try:
            self._file.verify(self._bases, self._image)
            state = "complete"
        except MedesError as error:
            state, self.lost_reason, self._error = "lost", str(error), error
            self.lost_code = error.code
        self._restore_us = int((time.perf_counter() - start_s) * 1e6)
        self._image = None
        self._state = state
        self._done.set()

    def wait_ready(self, timeout_s: float) -> bool:
        """As wait_complete: an image is ready when every page has been rebuilt."""
        return self.wait_complete(timeout_s)

    def wait_complete(self, timeout_s: float) -> bool:
        if not self._done.wait(timeout_s):
            return False
        if self._error is not None:
            raise self._error
        return True

    def stats(self) -> dict[str, int]:
        return {
            "pages_total": self._file.page_count,
            "pages_prefetched": 0,
            "faults_demand": 0,
            "ready_us": self._restore_us,
            "complete_us": self._restore_us,
            "remote_bytes": 0,  # the agent counts what the bases read
            "demand_woken": 0,
        }

    def working_set(self) -> bytes:
        return b""

    def set_working_set(self, working_set: bytes) -> None:
        """Nothing to prefetch."""

    def detach(self) -> None:
        """Nothing to let go of but those who wait."""
        with self._lock:
            if self._done.is_set():
                return
            self._error = CancelledError("its handle was let go of", object=self._file.path)
            self._done.set()


class ImageDriver:
    """Works anywhere that /proc/<pid>/mem of the sandbox can be read."""

    name = "image"
    frees = False
    event_fd = -1

    def capture(self, pids: list[int], sharers_max: int | None = None) -> native.MemoryImage:
        """A copy, which a restore is compared with. Of all pages, as none goes."""
        return native.capture(pids)

    def evict(
        self,
        image: native.MemoryImage,
        file: native.SandboxFile,
        bases: native.BaseSet,
        hold_frozen: bool = False,
        cancel: native.CancelFlag | None = None,
        working_set: bytes = b"",
    ) -> ImageSandbox:
        """Evicts nothing. Raises cancelled."""
        if cancel is not None and cancel.cancelled:
            raise CancelledError("cancelled before the eviction", object=file.path)
        return ImageSandbox(file, bases, image)

    def adopt(self, file: native.SandboxFile, bases: native.BaseSet) -> ImageSandbox:
        """After a restart the image is gone: a restore then checks against the page checksums only."""
        return ImageSandbox(file, bases, None)

    def take_events(self) -> list[tuple[str, str]]:
        return []

    def release_gone(self) -> None:
        """Nothing is held."""

    def close(self) -> None:
        """Nothing is held."""
