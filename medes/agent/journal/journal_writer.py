"""The journal as the event loop uses it: records in order, written by one thread, compacted when it has grown.

Records that could not be written (a full disk) are not forgotten: the state that all records add up to is written anew
as soon as that works, by the next record or by `heal`.
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait

from medes.agent.journal.journal import COMPACT_BYTES_MIN, Journal, Record
from medes.agent.journal.journal_state import JournalState
from medes.errors import DeadlineExceededError, MedesError
from medes.limits import JOURNAL_WRITE_TIMEOUT_S

log = logging.getLogger(__name__)

GROWTH_BEFORE_COMPACTION = 4


class JournalWriter:
    """Owns an open journal and the state that its records add up to. Use from one event loop."""

    def __init__(self, journal: Journal, thread: Executor | None = None) -> None:
        """`thread` does the writing, one record after the other; closed with this."""
        self.state = JournalState.replay(journal.read())
        self.damaged = journal.damaged_lines + self.state.damaged_records
        self.was_empty = journal.was_empty
        self.set_aside = journal.set_aside
        self._journal = journal
        self._thread = thread or ThreadPoolExecutor(max_workers=1, thread_name_prefix="medes-journal")
        self._compact_at_bytes = max(COMPACT_BYTES_MIN, GROWTH_BEFORE_COMPACTION * journal.size_bytes)
        self._appended_seen_bytes = 0
        self._healing: Future[None] | None = None
        self._closed = False
        self.failure: str = ""  # why the file lacks records that `state` has; empty: it lacks none

    def post(self, *records: Record) -> None:
        """Queues records; order with other calls is kept, failures are logged and kept in `failure`."""
        self._submit(records, sync=False)

    async def write(self, *records: Record, sync: bool = False) -> None:
        """Returns when the records are with the kernel (sync: on the disk). Raises io, deadline_exceeded."""
        written = asyncio.wrap_future(self._submit(records, sync=sync))
        done, _ = await asyncio.wait({written}, timeout=JOURNAL_WRITE_TIMEOUT_S)
        if not done:
            raise DeadlineExceededError(
                f"the journal was not written within {JOURNAL_WRITE_TIMEOUT_S:g} s",
                object=str(self._journal.path),
                hint="does the disk of state_dir answer?",
            )
        try:
            written.result()
        finally:
            del written, done  # see waits.py

    def heal(self) -> None:
        """Writes what could not be written before, if anything; returns at once."""
        if self.failure and (self._healing is None or self._healing.done()):
            self._healing = self._submit((), sync=False)

    def _submit(self, records: tuple[Record, ...], *, sync: bool) -> Future[None]:
        for record in records:
            self.state.apply(record)
        snapshot = None
        if self.failure or self._appended_seen_bytes > self._compact_at_bytes:
            # Taken after these records were applied, so it stands for them as well.
            snapshot = list(self.state.snapshot())
            self._appended_seen_bytes = 0
        future = self._thread.submit(self._run, records, sync, snapshot)
        future.add_done_callback(lambda f: None if f.cancelled() else f.exception())  # told by _run
        return future

    def _run(self, records: tuple[Record, ...], sync: bool, snapshot: list[Record] | None) -> None:
        try:
            if snapshot is None:
                self._journal.append(records, sync=sync)
                self._appended_seen_bytes = self._journal.size_bytes
                return
            self._journal.compact(snapshot)
            self._compact_at_bytes = max(
                COMPACT_BYTES_MIN, GROWTH_BEFORE_COMPACTION * self._journal.size_bytes
            )
            if self.failure:
                log.warning("journal: written again, nothing is missing in it")
            self.failure = ""
        except MedesError as error:
            if not self.failure:
                log.error("journal: %s", error)
            self.failure = str(error)
            raise

    def close(self) -> None:
        """Waits for what was posted, tries once more what could not be written, closes. Idempotent. A disk that does not
        answer within JOURNAL_WRITE_TIMEOUT_S is not waited for: the next agent has slabs and sandbox files."""
        if self._closed:
            return
        if self.failure:
            self.heal()
            self.failure = ""
        self._closed = True
        last = self._thread.submit(lambda: None)
        self._thread.shutdown(wait=False)
        if wait({last}, timeout=JOURNAL_WRITE_TIMEOUT_S).not_done:
            log.error("journal: %s does not answer: what is not written by now is lost", self._journal.path)
            return
        self._journal.close()
