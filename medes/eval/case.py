"""The contract of evaluation cases: one thing that is measured, and what the frame (medes.eval.running) does around it.

A case yields records; the frame repeats it, writes each record to the disk at once (medes.eval.report), and goes on where
an interrupted run ended. A case knows no file, no repetition and no statistic. medes.plugins lists the cases;
tests/conformance/test_evaluation_cases.py holds all to this.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

from medes.errors import InvalidArgumentError
from medes.limits import (
    EVALUATION_LABELS_MAX,
    EVALUATION_NAME_CHARS_MAX,
    EVALUATION_REASON_CHARS_MAX,
    NAME_CHARS_MAX,
)

# What the name of a figure ends with.
UNITS = ("bytes", "pages", "count", "ratio", "us", "ms", "s", "bytes_per_s", "per_s")
_WORD = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
Key = tuple[str, tuple[tuple[str, str], ...]]  # a record's name and its labels, sorted


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured value: `first_answer_ms`, 4.2, {"function": "html"}. The unit comes last in the name, one of UNITS.
    `labels`: what it was measured of; a median over a figure's repetitions is taken of equal names and labels.

    Raises invalid_argument for a name without a unit, a value that is not finite, or labels that are not short
    printable texts."""

    name: str
    value: float
    labels: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check(self.name, self.labels)
        if isinstance(self.value, bool) or not isinstance(self.value, int | float) or not _finite(self.value):
            raise InvalidArgumentError("not a finite number", object=self.name)

    @property
    def key(self) -> Key:
        return key(self.name, **self.labels)


@dataclass(frozen=True, slots=True)
class Absent:
    """A figure that cannot be had here though the case runs, and why: an alternative that is not installed.
    Raises as Figure does."""

    name: str
    why: str
    labels: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check(self.name, self.labels)
        if not _text(self.why, EVALUATION_REASON_CHARS_MAX):
            raise InvalidArgumentError("no reason, or not one short line", object=self.name)

    @property
    def key(self) -> Key:
        return key(self.name, **self.labels)


Record = Figure | Absent


def key(name: str, /, **labels: str) -> Key:
    """By which a record is known: no two of one repetition have the same."""
    return name, tuple(sorted(labels.items()))


def unit(name: str) -> str:
    """What the name ends with, the longest of UNITS; empty where that is none."""
    return max((u for u in UNITS if name.endswith(f"_{u}")), key=len, default="")


def _check(name: object, labels: object) -> None:
    if not _text(name, EVALUATION_NAME_CHARS_MAX) or not _WORD.fullmatch(str(name)) or not unit(str(name)):
        raise InvalidArgumentError(
            "a figure's name is words and a unit", object=repr(name)[:100], hint="one of " + ", ".join(UNITS)
        )
    if not isinstance(labels, Mapping) or len(labels) > EVALUATION_LABELS_MAX:
        raise InvalidArgumentError(
            f"more than {EVALUATION_LABELS_MAX} labels, or none at all", object=str(name)
        )
    for label, value in labels.items():
        if not _text(label, NAME_CHARS_MAX) or not _WORD.fullmatch(label) or not _text(value, NAME_CHARS_MAX):
            raise InvalidArgumentError("a label is a word and a short printable text", object=str(name))


def _text(value: object, chars_max: int) -> bool:
    return isinstance(value, str) and 0 < len(value) <= chars_max and value.isprintable()


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        return False


class Options(Protocol):
    """How much a case measures: a frozen dataclass, every field a default and of a JSON type (tuples are lists). What is
    made without arguments is the size that a published figure is taken at. It goes into the report: figures of
    different options are never mixed."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @classmethod
    def quick(cls) -> Self:
        """The smallest size at which everything runs once, for CI: seconds. Its figures mean nothing."""
        ...


@dataclass(frozen=True, slots=True)
class Context:
    """What a run of a case is given.

    `folder`: an empty folder, the frame's: made for this run and removed after it. The case may fill it, and leaves it
    empty. `measured`: keys of the records that an interrupted run of this repetition has left (see `has`).
    `progress`: one line for whoever waits, such as what is measured now."""

    options: Any
    folder: Path
    repetition: int = 0  # from 0: for a seed, so that repetitions differ
    measured: frozenset[Key] = frozenset()
    progress: Callable[[str], None] = lambda text: None

    def has(self, name: str, /, **labels: str) -> bool:
        """Whether that record need not be measured again. To ask is optional: one that is yielded again is dropped."""
        return key(name, **labels) in self.measured


class Case(Protocol):
    """One evaluation case. What its entry in medes.plugins names is the class, made without arguments.

    Raised errors decide by their type (medes.errors): `unsupported` says that it cannot run here, so the case is skipped;
    what passes (`transient`) is tried again by the frame; anything else is permanent, and ends the case but not the
    evaluation. Wrong answers of what is measured are such a failure (`corrupt`), never a figure."""

    name: ClassVar[str]  # as in the entry point; of its file too: lower-case words with hyphens
    summary: ClassVar[str]  # one line: what is measured, on what
    options: ClassVar[type[Options]]

    def missing(self) -> dict[str, str]:
        """What this machine lacks → how to get it. Empty: it can run. Returns within a second or so, changes nothing,
        raises nothing."""
        ...

    def run(self, context: Context) -> Iterator[Record]:
        """Measures once, and yields each record as soon as it is measured; the frame repeats. Blocks for as long as it
        takes, in the thread that asks for the next record. All keys of a run are different.

        However it ends (at its end, by an error, by a Ctrl-C, closed by the frame in the middle), it leaves no process,
        no mount and no file behind."""
        ...
