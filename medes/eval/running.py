"""The frame around evaluation cases: which there are, repetitions, a file each, what is skipped and what is tried again."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import json
import re
import tempfile
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

from medes import plugins
from medes.bench.machine import machine
from medes.errors import InternalError, MedesError, UnsupportedError
from medes.eval.case import Case, Context, Figure, Options, Record
from medes.eval.report import SUFFIX, Header
from medes.eval.writer import Writer
from medes.limits import EVALUATION_ATTEMPTS_MAX, EVALUATION_NAME_CHARS_MAX
from medes.plugins import Kind

Progress = Callable[[str], None]
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


class Outcome(enum.Enum):
    """What became of a case."""

    MEASURED = "measured"
    COMPLETE = "complete"  # before: nothing was run
    SKIPPED = "skipped"  # it cannot run here
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Ending:
    """`records`: of the repetitions that this run has ended. `error`: why it was skipped or failed."""

    case: str
    outcome: Outcome
    records: int = 0
    error: MedesError | None = None


def load(name: str) -> Case:
    """Raises unsupported when there is none of that name, when it cannot be had, or is not what it says."""
    kind = plugins.load(Kind.EVALUATION_CASE, name)
    try:
        made: Case = kind()
        known_as = made.name
    except Exception as error:
        raise UnsupportedError(
            f"cannot be made: {_text_of(error)}", object=f"{Kind.EVALUATION_CASE.value} {name}"
        ) from error
    if known_as != name or not _NAME.fullmatch(name) or len(name) > EVALUATION_NAME_CHARS_MAX:
        raise UnsupportedError(f"it calls itself {known_as!r}", object=f"{Kind.EVALUATION_CASE.value} {name}")
    return made


def file_of(folder: Path, case: str) -> Path:
    return folder / f"{case}{SUFFIX}"


def run(name: str, folder: Path, *, quick: bool, repetitions: int, progress: Progress) -> Ending:
    """Measures what is not yet in the case's file in that folder, which exists. Blocks. Every failure is in what it
    returns; a Ctrl-C goes through, and the next call goes on where it came."""
    try:
        case = load(name)
        if lacks := case.missing():
            raise UnsupportedError("; ".join(f"{what} ({how})" for what, how in lacks.items()), object=name)
        options = case.options.quick() if quick else case.options()
        header = _header(name, options)
    except Exception as error:
        return _ended_by(error, name)
    try:
        writer = Writer.open(file_of(folder, name), header)
    except MedesError as error:
        return Ending(name, Outcome.FAILED, error=error)
    with contextlib.closing(writer):
        return _run(name, case, options, writer, repetitions, progress)


def _run(
    name: str, case: Case, options: Options, writer: Writer, repetitions: int, progress: Progress
) -> Ending:
    if writer.ended >= repetitions:
        return Ending(name, Outcome.COMPLETE)
    records = 0

    def located(text: str) -> None:
        progress(f"{name} {writer.ended + 1}/{repetitions}: {text}")

    try:
        while writer.ended < repetitions:
            _repetition(case, options, writer, located)
            records += writer.end_repetition()
    except Exception as error:
        return _ended_by(error, name, records)
    return Ending(name, Outcome.MEASURED, records)


def _ended_by(error: Exception, name: str, records: int = 0) -> Ending:
    """A case is anybody's code: whatever it raises, the others go on."""
    if isinstance(error, UnsupportedError):
        return Ending(name, Outcome.SKIPPED, records, error)
    if isinstance(error, MedesError):
        return Ending(name, Outcome.FAILED, records, error)
    bug = InternalError(_text_of(error), object=name, hint="a bug in the case")
    bug.__cause__ = error
    return Ending(name, Outcome.FAILED, records, bug)


def _text_of(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _header(name: str, options: Options) -> Header:
    return Header(name, json.loads(json.dumps(dataclasses.asdict(options))), machine())  # type: ignore[call-overload]


def _repetition(case: Case, options: Options, writer: Writer, progress: Progress) -> None:
    """One, until it has ended: what fails for reasons that pass is tried again."""
    for attempt in range(1, EVALUATION_ATTEMPTS_MAX + 1):
        try:
            with tempfile.TemporaryDirectory(prefix="medes-eval-") as folder:
                context = Context(options, Path(folder), writer.ended, writer.measured, progress)
                with contextlib.closing(_closable(case.run(context))) as records:
                    for record in records:
                        if writer.add(record):
                            progress(_text(record))
            return
        except MedesError as error:
            if not error.transient or attempt == EVALUATION_ATTEMPTS_MAX:
                raise
            progress(f"tried again: {error}")
            writer.retry()


def _closable(records: Iterator[Record]) -> Generator[Record, None, None]:
    yield from records


def _text(record: Record) -> str:
    what = f"{record.value:g}" if isinstance(record, Figure) else f"not here: {record.why}"
    return " ".join((*record.labels.values(), record.name, what))
