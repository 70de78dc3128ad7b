"""The agent's journal: `<state_dir>/journal`, what must survive a killed agent apart from the memory itself.

One record a line: 16 hex digits (checksum64 of the JSON text), a space, JSON. Appends go to the kernel before
`append` returns, which is all that `kill -9` needs; `sync=True` also fsyncs, for what other nodes rely on (pins,
bases). A line that fails its checksum is skipped and counted: the last one is usually torn, and the sandbox files
carry enough to recover without the journal. `medes.agent.journal_state` gives the records their meaning.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from medes import native
from medes.errors import AlreadyExistsError, IoError

Record = dict[str, Any]

COMPACT_BYTES_MIN = 1 << 20  # rewriting a journal smaller than this is not worth it
LINE_BYTES_MAX = 8 << 20


def encode_line(record: Record) -> bytes:
    """One journal line."""
    text = json.dumps(record, separators=(",", ":"), sort_keys=True).encode()
    return b"%016x %s\n" % (native.checksum64(text), text)


def decode_line(line: bytes) -> Record | None:
    """The record of a line without its newline; None when the line is torn or damaged."""
    if len(line) < 18 or len(line) > LINE_BYTES_MAX or line[16:17] != b" ":
        return None
    text = line[17:]
    try:
        if int(line[:16], 16) != native.checksum64(text):
            return None
        record = json.loads(text)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


class Journal:
    """Append-only file of records; one agent at a time (flock). Not thread-safe: one thread appends."""

    def __init__(self, path: Path) -> None:
        """Opens or creates; raises already_exists when another agent holds it, io when it cannot be opened."""
        self.path = path
        self.skipped_lines = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock_fd = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise IoError(str(error), object=str(path)) from error
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock_fd)
            raise AlreadyExistsError("another agent uses this state_dir", object=str(path.parent)) from error
        self._fd = self._open()

    def _open(self) -> int:
        try:
            return os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as error:
            os.close(self._lock_fd)
            raise IoError(str(error), object=str(self.path)) from error

    def read(self) -> list[Record]:
        """All intact records in order. Cuts a torn tail off, so that the next append starts a line."""
        data = self.path.read_bytes()
        records = []
        for line in data.split(b"\n"):
            if not line:
                continue
            record = decode_line(line)
            if record is None:
                self.skipped_lines += 1
            else:
                records.append(record)
        if data and not data.endswith(b"\n"):
            self._end_tail(data)
        return records

    def _end_tail(self, data: bytes) -> None:
        """The last line lacks its newline: it is completed where only that is missing, else cut off."""
        start = data.rfind(b"\n") + 1
        if decode_line(data[start:]) is not None:
            os.write(self._fd, b"\n")
        else:
            os.ftruncate(self._fd, start)

    def append(self, records: Iterable[Record], *, sync: bool = False) -> None:
        """Writes records with one call; raises io. Blocks for the fsync when sync."""
        data = b"".join(encode_line(r) for r in records)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(self._fd, view) :]
            if sync:
                os.fsync(self._fd)
        except OSError as error:
            raise IoError(str(error), object=str(self.path), hint="is the disk of state_dir full?") from error

    @property
    def size_bytes(self) -> int:
        return os.fstat(self._fd).st_size

    def compact(self, records: Iterable[Record]) -> None:
        """Replaces the journal's content by `records` (a snapshot of the same state), atomically."""
        fresh = self.path.with_suffix(".new")
        try:
            fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb") as file:
                for record in records:
                    file.write(encode_line(record))
                file.flush()
                os.fsync(file.fileno())
            fresh.rename(self.path)
            directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            raise IoError(str(error), object=str(self.path)) from error
        old, self._fd = self._fd, self._open()
        os.close(old)

    def close(self) -> None:
        """Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            os.close(self._lock_fd)
            self._fd = self._lock_fd = -1
