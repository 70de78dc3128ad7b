"""What every evaluation case holds, the project's own and those that are installed: at its smallest size it runs here or
says what is missing, and however it ends nothing of it is left."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from medes import native, plugins
from medes.eval import running
from medes.eval.case import Case, Context, Figure, Record
from medes.eval.report import read, spreads
from medes.eval.running import Ending, Outcome
from medes.plugins import Kind

CASES = plugins.names(Kind.EVALUATION_CASE)
ENDING_S = 5.0
SHM = Path("/dev/shm")


class Watched:
    """A case, and what lies in its work folder as each run ends."""

    def __init__(self, case: Case) -> None:
        self.name, self.summary, self.options = case.name, case.summary, case.options
        self.missing = case.missing
        self._run = case.run
        self.runs = 0
        self.files_left: list[Path] = []

    def run(self, context: Context) -> Iterator[Record]:
        self.runs += 1
        try:
            yield from self._run(context)
        finally:
            self.files_left += context.folder.iterdir()


class Traces:
    """What this process has begun since: processes, known by their parents or by TMPDIR in their environment; and
    temporary folders, with those in shared memory that have such a name. Other runs on this machine have theirs."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._mark = f"TMPDIR={folder}".encode()
        self._made: list[Path] = []
        make = tempfile.mkdtemp

        def seen(*arguments: Any, **options: Any) -> str:
            made = make(*arguments, **options)
            self._made.append(Path(made))
            return made

        monkeypatch.setenv("TMPDIR", str(folder))
        monkeypatch.setattr(tempfile, "tempdir", None)
        monkeypatch.setattr(tempfile, "mkdtemp", seen)
        self._before = self._processes()

    def left(self) -> list[object]:
        """What is there in the end: a killed process is seen until the kernel has taken its memory apart."""
        end_s = time.monotonic() + ENDING_S
        while (left := self._left()) and time.monotonic() < end_s:
            time.sleep(0.02)
        return left

    def _left(self) -> list[object]:
        folders = {p for made in self._made for p in (made, *SHM.glob(f"{made.name}*")) if p.exists()}
        return [*(self._processes() - self._before), *folders]

    def _processes(self) -> set[int]:
        found = set(native.process_tree([os.getpid()]))
        for environ in Path("/proc").glob("[0-9]*/environ"):
            try:
                if self._mark in environ.read_bytes().split(b"\0"):
                    found.add(int(environ.parent.name))
            except OSError:  # somebody else's, or gone
                continue
        return found


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> Iterator[Traces]:
    with tempfile.TemporaryDirectory(prefix="case-") as folder:  # short: socket addresses have 107 bytes
        yield Traces(Path(folder), monkeypatch)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Whoever runs the tests in the background may have them ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return running.load(request.param)


def test_a_case_says_what_it_is(case: Case) -> None:
    assert case.name in CASES
    assert case.summary and len(case.summary.splitlines()) == 1
    assert all(what and how for what, how in case.missing().items())
    for options in (case.options(), case.options.quick()):
        assert options.__dataclass_params__.frozen  # type: ignore[attr-defined]
        assert json.dumps(dataclasses.asdict(options), allow_nan=False)  # type: ignore[call-overload]


def test_interrupted_gone_on_with_and_complete(
    case: Case, tmp_path: Path, traces: Traces, interruptible: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if lacks := case.missing():
        pytest.skip(f"it cannot run here: {'; '.join(f'{what} ({how})' for what, how in lacks.items())}")
    watched = Watched(case)
    monkeypatch.setattr(running, "load", lambda name: watched)
    told: list[str] = []

    def run() -> Ending:
        return running.run(case.name, tmp_path, quick=True, repetitions=1, progress=tell)

    def tell(text: str) -> None:
        told.append(text)
        if len(told) == 1:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run()
    assert (traces.left(), watched.files_left) == ([], [])
    ending = run()
    assert (ending.outcome, ending.error) == (Outcome.MEASURED, None)
    assert (traces.left(), watched.files_left) == ([], [])
    report = read(running.file_of(tmp_path, case.name))
    (records,) = report.repetitions
    assert len({r.key for r in records}) == len(records) == ending.records
    assert len(spreads(report)) == sum(isinstance(r, Figure) for r in records) > 0
    assert len(told) >= len(records)  # each as it came
    assert (run().outcome, watched.runs) == (Outcome.COMPLETE, 2)
