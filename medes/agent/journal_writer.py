"""The journal as the event loop uses it: records in order, written by one thread, compacted when it has grown."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import Future, ThreadPoolExecutor

from medes.agent.journal import COMPACT_BYTES_MIN, Journal, Record
from medes.agent.journal_state import JournalState

log = logging.getLogger(__name__)

GROWTH_BEFORE_COMPACTION = 4


class JournalWriter:
    """Owns an open journal and the state that its records add up to. Use from one event loop."""

    def __init__(self, journal: Journal) -> None:
        self.state = JournalState.replay(journal.read())
        self.skipped_lines = journal.skipped_lines
        self._journal = journal
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="medes-journal")
        self._compact_at_bytes = max(COMPACT_BYTES_MIN, GROWTH_BEFORE_COMPACTION * journal.size_bytes)
        self._appended_bytes_seen = 0
        self.failure: str = ""

    def post(self, *records: Record) -> None:
        """Queues records; order with other calls is kept, failures are logged and kept in `failure`."""
        self._submit(records, sync=False).add_done_callback(self._log_failure)

    async def write(self, *records: Record, sync: bool = False) -> None:
        """Returns when the records are with the kernel (sync: on the disk). Raises io."""
        await asyncio.wrap_future(self._submit(records, sync=sync))

    def _submit(self, records: tuple[Record, ...], *, sync: bool) -> Future[None]:
        for record in records:
            self.state.apply(record)
        snapshot = None
        if self._appended_bytes_seen > self._compact_at_bytes:
            snapshot = list(self.state.snapshot())
            self._appended_bytes_seen = 0
        return self._thread.submit(self._run, records, sync, snapshot)

    def _run(self, records: tuple[Record, ...], sync: bool, snapshot: list[Record] | None) -> None:
        if snapshot is not None:
            # The snapshot was taken after these records were applied, so it stands for them as well.
            self._journal.compact(snapshot)
            self._compact_at_bytes = max(
                COMPACT_BYTES_MIN, GROWTH_BEFORE_COMPACTION * self._journal.size_bytes
            )
            return
        self._journal.append(records, sync=sync)
        self._appended_bytes_seen = self._journal.size_bytes

    def _log_failure(self, future: Future[None]) -> None:
        error = future.exception()
        if error is not None:
            self.failure = str(error)
            log.error("journal: %s", error)

    def close(self) -> None:
        """Waits for what was posted, compacts, closes. Idempotent."""
        self._thread.shutdown(wait=True)
        self._journal.close()
