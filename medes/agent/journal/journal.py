"""The agent's journal: `<state_dir>/journal`, what must survive a killed agent apart from the memory itself.

One record a line: 16 hex digits (checksum64 of the JSON text), a space, JSON. Appends go to the kernel before
`append` returns, which is all that `kill -9` needs; `sync=True` also fsyncs, for what other nodes rely on (pins,
bases). A line that fails its checksum is skipped: a last one without its newline was being written and nobody relied
on it yet; any other is counted as damaged, and slabs and sandbox files say what it may have said.
`medes.agent.journal.journal_state` gives the records their meaning.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from medes import native
from medes.agent.store.folder_lock import FolderLock, Owner
from medes.errors import IoError, MedesError
from medes.folders import free_name, open_private

Record = dict[str, Any]

# Written as the first record. A journal whose `readable_from` is above ours is set aside for the agent that wrote it.
FORMAT_VERSION = 1
FORMAT: Record = {"t": "format", "version": FORMAT_VERSION, "readable_from": 1}
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
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _needs_newer(records: list[Record]) -> bool:
    formats = [r.get("readable_from") for r in records if r.get("t") == "format"]
    return any(isinstance(oldest, int) and oldest > FORMAT_VERSION for oldest in formats)


class Journal:
    """Append-only file of records; one agent at a time (flock). Not thread-safe: one thread appends."""

    def __init__(self, path: Path, owner: Owner | None = None) -> None:
        """Opens or creates; raises already_exists when another agent holds it, io or permission_denied when it cannot be
        opened (medes.folders)."""
        self.path = path
        self.damaged_lines = 0
        self.set_aside: Path | None = None  # where the journal of a newer agent is now
        self.was_empty = True  # nothing was read: a new node, or one whose state_dir is gone
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise IoError(str(error), object=str(path)) from error
        self._lock = FolderLock(path.with_suffix(".lock"), "state_dir", owner)
        try:
            self._fd = self._open()
        except MedesError:
            self._lock.close()
            raise

    def _open(self) -> int:
        return open_private(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND)

    def read(self) -> list[Record]:
        """All intact records in order. Cuts a torn tail off, so that the next append starts a line."""
        with os.fdopen(os.dup(self._fd), "rb") as file:
            file.seek(0)
            data = file.read()
        records = []
        self.was_empty = not data
        *lines, tail = data.split(b"\n")
        for line in lines:
            record = decode_line(line) if line else None
            if record is not None:
                records.append(record)
            elif line:
                self.damaged_lines += 1
        if (record := decode_line(tail)) is not None:
            records.append(record)
        if _needs_newer(records):
            self._set_aside()
            return []
        if data and not data.endswith(b"\n"):
            self._end_tail(data)
        if not data:
            with contextlib.suppress(IoError):  # a full disk is told of when something depends on it
                self.append([FORMAT])
        return [r for r in records if r.get("t") != "format"]

    def _set_aside(self) -> None:
        """Slabs and sandbox files say what is needed of it."""
        aside = free_name(self.path.with_name("journal.newer"))
        try:
            self.path.rename(aside)
        except OSError as error:
            raise IoError(str(error), object=str(self.path)) from error
        os.close(self._fd)
        self._fd = self._open()
        self.set_aside = aside

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
        size_bytes = self.size_bytes
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(self._fd, view) :]
            if sync:
                os.fsync(self._fd)
        except OSError as error:
            # Half a line would spoil the next one.
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, size_bytes)
            raise IoError(str(error), object=str(self.path), hint="is the disk of state_dir full?") from error

    @property
    def size_bytes(self) -> int:
        return os.fstat(self._fd).st_size

    def compact(self, records: Iterable[Record]) -> None:
        """Replaces the journal's content by `records` (a snapshot of the same state), atomically."""
        fresh = self.path.with_suffix(".new")
        try:
            fd = open_private(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            with os.fdopen(fd, "wb") as file:
                for record in (FORMAT, *records):
                    file.write(encode_line(record))
                file.flush()
                os.fsync(file.fileno())
            fresh.rename(self.path)
            directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except (OSError, MedesError) as error:
            with contextlib.suppress(OSError):
                fresh.unlink(missing_ok=True)  # it takes room that is short
            raise IoError(str(error), object=str(self.path)) from error
        old, self._fd = self._fd, self._open()
        os.close(old)

    def close(self) -> None:
        """Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._lock.close()
            self._fd = -1
