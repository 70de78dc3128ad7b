"""What an evaluation case has measured, on the disk and read back: one file a case, one JSON object a line.

    {"format": "medes evaluation", "version": 1, "readable_from": 1, "case": …, "options": {…}, "host": {…}}
    {"figure": "first_answer_ms", "value": 4.2, "labels": {"function": "html"}, "repetition": 0}
    {"absent": "first_answer_ms", "why": "no CRIU", "labels": {"alternative": "criu"}, "repetition": 0}
    {"ended": 0, "records": 2}

Repetitions follow each other. One without its last line was interrupted: its records are on the disk and count for
nothing yet. A last line without its line feed was interrupted too, and is as if it were not there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medes.errors import (
    CorruptError,
    InvalidArgumentError,
    IoError,
    LimitExceededError,
    MedesError,
    NotFoundError,
    UnsupportedError,
)
from medes.eval.case import Absent, Figure, Key, Record, key
from medes.limits import (
    EVALUATION_FILE_BYTES_MAX,
    EVALUATION_LINE_BYTES_MAX,
    EVALUATION_RECORDS_MAX,
    EVALUATION_REPETITIONS_MAX,
)
from medes.quantiles import quantile

FORMAT, VERSION = "medes evaluation", 1
SUFFIX = ".jsonl"


@dataclass(frozen=True, slots=True)
class Header:
    """`options`: of the case, as JSON has them. `host`: medes.bench.machine, as the file was begun."""

    case: str
    options: Mapping[str, Any]
    host: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Report:
    """One case's file. `repetitions`: the records of each one that ended; `interrupted`: those of one that did not.
    `whole_bytes`: up to where the file has whole lines."""

    header: Header
    repetitions: tuple[tuple[Record, ...], ...]
    interrupted: tuple[Record, ...]
    whole_bytes: int

    @property
    def absent(self) -> tuple[Absent, ...]:
        """What the last repetition that ended could not have."""
        return tuple(r for r in self.repetitions[-1] if isinstance(r, Absent)) if self.repetitions else ()


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over the repetitions that ended: nearest ranks, so each is a value that was measured."""

    median: float
    lower_quartile: float
    upper_quartile: float
    count: int


class Spreads(dict[Key, Spread]):
    """The figures of a report by key."""

    def median(self, name: str, /, **labels: str) -> float:
        """Raises not_found for a figure that was not measured."""
        found = self.get(key(name, **labels))
        if found is None:
            raise NotFoundError("was not measured", object=" ".join((name, *labels.values())))
        return found.median

    def values_of(self, label: str) -> list[str]:
        """The different values of a label, as they were measured."""
        return list(dict.fromkeys(value for _, labels in self for name, value in labels if name == label))


def spreads(report: Report) -> Spreads:
    """Median, quartiles and count of every figure, in the order in which they were measured."""
    values: dict[Key, list[float]] = {}
    for record in (record for repetition in report.repetitions for record in repetition):
        if isinstance(record, Figure):
            values.setdefault(record.key, []).append(record.value)
    return Spreads(
        {k: Spread(quantile(v, 0.5), quantile(v, 0.25), quantile(v, 0.75), len(v)) for k, v in values.items()}
    )


def header_line(header: Header) -> str:
    return _line(
        {
            "format": FORMAT,
            "version": VERSION,
            "readable_from": VERSION,
            "case": header.case,
            "options": header.options,
            "host": header.host,
        }
    )


def record_line(record: Record, repetition: int) -> str:
    if isinstance(record, Figure):
        what: dict[str, Any] = {"figure": record.name, "value": record.value}
    else:
        what = {"absent": record.name, "why": record.why}
    return _line({**what, "labels": dict(record.labels), "repetition": repetition})


def ended_line(repetition: int, records: int) -> str:
    return _line({"ended": repetition, "records": records})


def _line(fields: Mapping[str, Any]) -> str:
    return json.dumps(fields, ensure_ascii=False, separators=(", ", ": "), allow_nan=False) + "\n"


def read(path: Path) -> Report:
    """Blocks. Raises not_found, io; invalid_argument for a file of something else, corrupt with the line for a damaged
    one, unsupported for one of a newer Medes, limit_exceeded for one that is too large."""
    try:
        with path.open("rb") as file:
            data = file.read(EVALUATION_FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        raise NotFoundError("no such file", object=str(path)) from None
    except OSError as error:
        raise IoError(f"cannot be read: {error.strerror}", object=str(path)) from error
    return parse(data, str(path))


def parse(data: bytes, name: str) -> Report:
    """The same of a file's bytes; `name` is for messages."""
    if len(data) > EVALUATION_FILE_BYTES_MAX:
        raise LimitExceededError(f"larger than {EVALUATION_FILE_BYTES_MAX} bytes", object=name)
    whole = data[: data.rfind(b"\n") + 1]
    first, *rest = whole.split(b"\n")[:-1] or [b""]
    header = _header(first, name)
    reading = _Reading()
    for number, line in enumerate(rest, 2):
        try:
            reading.take(_fields(line))
        except LimitExceededError as error:
            raise LimitExceededError(error.message, object=name) from None
        except (MedesError, ValueError, RecursionError, KeyError, TypeError) as error:
            raise CorruptError(
                f"line {number} is damaged: {error or type(error).__name__}"[:300], object=name
            ) from None
    return Report(header, tuple(map(tuple, reading.ended)), tuple(reading.open), len(whole))


def _fields(line: bytes) -> dict[str, Any]:
    if len(line) > EVALUATION_LINE_BYTES_MAX:
        raise ValueError(f"longer than {EVALUATION_LINE_BYTES_MAX} bytes")
    fields = json.loads(line)
    if not isinstance(fields, dict):
        raise TypeError("no JSON object")
    return fields


def _header(line: bytes, name: str) -> Header:
    try:
        fields = _fields(line)
    except (ValueError, RecursionError, TypeError):
        fields = {}
    if fields.get("format") != FORMAT:
        raise InvalidArgumentError("not what an evaluation case has measured", object=name)
    readable_from, case = fields.get("readable_from"), fields.get("case")
    options, host = fields.get("options"), fields.get("host")
    if isinstance(readable_from, int) and readable_from > VERSION:
        raise UnsupportedError(
            f"of a newer Medes: to be read from version {readable_from}, this is {VERSION}", object=name
        )
    if (
        not isinstance(readable_from, int)
        or not isinstance(case, str)
        or not isinstance(options, dict)
        or not isinstance(host, dict)
    ):
        raise CorruptError("line 1 is damaged: case, options or host is not there", object=name)
    return Header(case, options, host)


class _Reading:
    """The lines so far."""

    def __init__(self) -> None:
        self.ended: list[list[Record]] = []
        self.open: list[Record] = []
        self._keys: set[Key] = set()
        self._count = 0

    def take(self, fields: Mapping[str, Any]) -> None:
        if "ended" in fields:
            self._number(fields["ended"])
            if fields["records"] != len(self.open):
                raise ValueError(f"{fields['records']} records, and {len(self.open)} are there")
            self.ended.append(self.open)
            self.open, self._keys = [], set()
            return
        self._number(fields["repetition"])
        if len(self.ended) >= EVALUATION_REPETITIONS_MAX:
            raise LimitExceededError(f"more than {EVALUATION_REPETITIONS_MAX} repetitions")
        record = (
            Figure(fields["figure"], fields["value"], fields["labels"])
            if "figure" in fields
            else Absent(fields["absent"], fields["why"], fields["labels"])
        )
        if record.key in self._keys:
            raise ValueError(f"{record.name} stands twice")
        self._count += 1
        if self._count > EVALUATION_RECORDS_MAX:
            raise LimitExceededError(f"more than {EVALUATION_RECORDS_MAX} records")
        self._keys.add(record.key)
        self.open.append(record)

    def _number(self, repetition: object) -> None:
        if repetition != len(self.ended):
            raise ValueError(f"repetition {repetition}, not {len(self.ended)}")


def keys(records: Iterable[Record]) -> frozenset[Key]:
    return frozenset(record.key for record in records)
