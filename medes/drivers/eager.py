"""A handle whose restore is one call that gives back every page before the sandbox runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from medes import native
from medes.drivers.untouched import Untouched
from medes.errors import CancelledError, MedesError


class EagerHandle(Untouched):
    """One dedup'd sandbox; see medes.drivers.driver.Handle. It serves no faults: nothing touches the sandbox meanwhile."""

    needed = False  # nothing of it waits for pages while it is dedup'd

    def __init__(
        self,
        file: native.SandboxFile,
        rebuild: Callable[[], None],
        evict_result: dict[str, int] | None = None,
    ) -> None:
        """`rebuild` gives the pages back, on a thread of its own; whatever it raises makes the sandbox lost."""
        self.lost_reason = ""
        self.lost_code = "ok"
        self.notes: list[str] = []
        self.evict_result = evict_result or {"evicted_pages": 0, "changed_pages": 0, "stopped_us": 0}
        self._file = file
        self._rebuild: Callable[[], None] | None = rebuild
        self._state = "dormant"
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._error: MedesError | None = None
        self._restore_us = 0

    @property
    def state(self) -> str:
        return self._state

    def restore(self, lazy: bool = True, working_set: bytes = b"", background_bytes_per_s: int = 0) -> None:
        """Starts rebuilding; lazy and the working set mean nothing here."""
        with self._lock:
            if self._state != "dormant" or self._done.is_set():
                return
            self._state = "restoring"
        threading.Thread(target=self._run, name="medes-eager-restore", daemon=True).start()

    def _run(self) -> None:
        start_s = time.perf_counter()
        rebuild, self._rebuild = self._rebuild, None
        assert rebuild is not None
        try:
            rebuild()
            state = "complete"
        except MedesError as error:
            state, self.lost_reason, failed = "lost", str(error), error.alone()
            self.lost_code = error.code
            with self._lock:
                self._error = self._error or failed
        self._restore_us = int((time.perf_counter() - start_s) * 1e6)
        self._state = state
        self._done.set()

    def wait_ready(self, timeout_s: float) -> bool:
        """As wait_complete: an image is ready when every page has been rebuilt."""
        return self.wait_complete(timeout_s)

    def wait_complete(self, timeout_s: float) -> bool:
        if not self._done.wait(timeout_s):
            return False
        if self._error is not None:
            raise self._error.alone()
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

    def detach(self) -> None:
        """Nothing to let go of but those who wait."""
        with self._lock:
            if self._done.is_set():
                return
            self._error = CancelledError("its handle was let go of", object=self._file.path)
            self._done.set()
