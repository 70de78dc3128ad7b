"""A case's file while it is written: begun or continued, one writer at a time, each record on the disk as it is measured."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Self

from medes.errors import AlreadyExistsError, BusyError, InternalError, IoError, LimitExceededError
from medes.eval import report
from medes.eval.case import Key, Record
from medes.eval.report import Header, Report
from medes.limits import EVALUATION_FILE_BYTES_MAX, EVALUATION_LINE_BYTES_MAX, EVALUATION_RECORDS_MAX

# Facts of the host that hold for all figures of a file; the others say how things were when it was begun.
LASTING = ("medes", "commit", "cpu", "cpus", "kernel", "python")


class Writer:
    """Made by `open`; `close` it. One thread."""

    def __init__(self, fd: int, path: Path, there: Report) -> None:
        self._fd, self._path = fd, path
        self._bytes = there.whole_bytes
        self._all = sum(map(len, there.repetitions)) + len(there.interrupted)
        self._left = report.keys(there.interrupted)  # by a run before this one
        self._keys: set[Key] = set()  # in this repetition, by this run
        self.ended = len(there.repetitions)

    @classmethod
    def open(cls, path: Path, header: Header) -> Self:
        """Begins the file, or continues one of the same case, options and machine. Blocks.

        Raises busy while another process writes it, already_exists for one of other options or another machine or
        commit; io, and what `report.read` raises of a file that is there."""
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise IoError(f"cannot be written: {error.strerror}", object=str(path)) from error
        try:
            return cls(fd, path, _continued(fd, path, header))
        except BaseException:
            os.close(fd)
            raise

    @property
    def measured(self) -> frozenset[Key]:
        """What an interrupted run has left of the repetition that is next."""
        return self._left

    def add(self, record: Record) -> bool:
        """On the disk when this returns. False, and nothing is written: an interrupted run has left it. Raises internal
        for the second of one key, limit_exceeded, io."""
        if record.key in self._keys:
            raise InternalError("was yielded twice with the same labels", object=record.name)
        self._keys.add(record.key)
        if record.key in self._left:
            return False
        if self._all >= EVALUATION_RECORDS_MAX:
            raise LimitExceededError(f"more than {EVALUATION_RECORDS_MAX} records", object=str(self._path))
        self._write(report.record_line(record, self.ended))
        self._all += 1
        return True

    def retry(self) -> None:
        """This repetition is run anew; what it has measured stays."""
        self._left, self._keys = self._left | self._keys, set()

    def end_repetition(self) -> int:
        """How many records it has."""
        records = len(self._left | self._keys)
        self._write(report.ended_line(self.ended, records))
        self.ended += 1
        self._left, self._keys = frozenset(), set()
        return records

    def _write(self, line: str) -> None:
        data = line.encode()
        if len(data) > EVALUATION_LINE_BYTES_MAX or self._bytes + len(data) > EVALUATION_FILE_BYTES_MAX:
            raise LimitExceededError("the line or the file is too long", object=str(self._path))
        _append(self._fd, data, self._path)
        self._bytes += len(data)

    def close(self) -> None:
        """A file in which nothing is written yet goes."""
        if not self._all and not self.ended:
            self._path.unlink(missing_ok=True)
        os.close(self._fd)


def _continued(fd: int, path: Path, header: Header) -> Report:
    """What is there, or what was just begun."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BusyError("another run writes it", object=str(path)) from None
    with os.fdopen(os.dup(fd), "rb") as file:
        data = file.read(EVALUATION_FILE_BYTES_MAX + 1)
    line = report.header_line(header).encode()
    if not data:
        _append(fd, line, path)
        return report.parse(line, str(path))
    there = report.parse(data, str(path))
    _refuse_other(there.header, header, path)
    os.ftruncate(fd, there.whole_bytes)
    os.lseek(fd, 0, os.SEEK_END)
    return there


def _refuse_other(there: Header, header: Header, path: Path) -> None:
    what = [
        name
        for name in ("case", "options")
        if _as_json(getattr(there, name)) != _as_json(getattr(header, name))
    ]
    what += [name for name in LASTING if there.host.get(name) != header.host.get(name)]
    if what:
        raise AlreadyExistsError(
            f"was measured with another {', '.join(what)}",
            object=str(path),
            hint="remove it, or name another folder",
        )


def _as_json(value: object) -> object:
    return json.loads(json.dumps(value))


def _append(fd: int, data: bytes, path: Path) -> None:
    try:
        while data:
            data = data[os.write(fd, data) :]
    except OSError as error:
        raise IoError(f"cannot be written: {error.strerror}", object=str(path)) from error
