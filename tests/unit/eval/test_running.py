"""The frame around cases: repetitions, interruptions, failures that pass and that do not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import pytest

from medes import plugins
from medes.errors import BusyError, CorruptError, InternalError, MedesError, UnsupportedError
from medes.eval import running
from medes.eval.case import Context, Figure, Record
from medes.eval.report import read
from medes.eval.running import Ending, Outcome
from medes.plugins import Kind

Step = Callable[[], Any]


@dataclass(frozen=True)
class Options:
    size: int = 100

    @classmethod
    def quick(cls) -> Self:
        return cls(size=1)


class Steps:
    """Yields three figures; before each it does what the test says."""

    name = "steps"
    summary = "three figures"
    options = Options
    before: ClassVar[list[Step]] = []  # taken one after the other, over all runs
    contexts: ClassVar[list[Context]] = []
    lacks: ClassVar[dict[str, str]] = {}

    def missing(self) -> dict[str, str]:
        return self.lacks

    def run(self, context: Context) -> Iterator[Record]:
        self.contexts.append(context)
        (context.folder / "left").write_text("behind")
        for number in range(3):
            if context.has(f"f{number}_ms"):
                continue
            if self.before:
                self.before.pop(0)()
            yield Figure(f"f{number}_ms", len(self.contexts))


def failing(error: BaseException) -> Step:
    def step() -> None:
        raise error

    return step


def passing() -> None: ...


@pytest.fixture(autouse=True)
def steps(monkeypatch: pytest.MonkeyPatch) -> type[Steps]:
    monkeypatch.setitem(
        plugins.OWN, Kind.EVALUATION_CASE, {"steps": f"{__name__}:Steps", "alias": f"{__name__}:Steps"}
    )
    monkeypatch.setattr(Steps, "before", [])
    monkeypatch.setattr(Steps, "contexts", [])
    monkeypatch.setattr(Steps, "lacks", {})
    return Steps


def run(folder: Path, repetitions: int = 1, name: str = "steps") -> Ending:
    return running.run(name, folder, quick=True, repetitions=repetitions, progress=lambda text: None)


def values(folder: Path) -> list[list[float]]:
    found = read(running.file_of(folder, "steps"))
    return [[r.value for r in records if isinstance(r, Figure)] for records in found.repetitions]


def test_repetitions_are_the_frames(tmp_path: Path) -> None:
    assert run(tmp_path, 2) == Ending("steps", Outcome.MEASURED, 6)
    assert values(tmp_path) == [[1, 1, 1], [2, 2, 2]]
    assert [c.repetition for c in Steps.contexts] == [0, 1]
    assert {c.options for c in Steps.contexts} == {Options(1)}
    assert not any(c.folder.exists() for c in Steps.contexts)


def test_what_is_complete_is_not_run_again_but_more_repetitions_are(tmp_path: Path) -> None:
    run(tmp_path, 1)
    assert run(tmp_path, 1).outcome is Outcome.COMPLETE
    assert run(tmp_path, 3) == Ending("steps", Outcome.MEASURED, 6)
    assert values(tmp_path) == [[1, 1, 1], [2, 2, 2], [3, 3, 3]]


def test_an_interrupted_run_goes_on_where_it_was(tmp_path: Path) -> None:
    Steps.before[:] = [passing, passing, passing, passing, failing(KeyboardInterrupt())]
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, 2)
    assert not Steps.contexts[-1].folder.exists()
    assert values(tmp_path) == [[1, 1, 1]]
    assert run(tmp_path, 2) == Ending("steps", Outcome.MEASURED, 3)
    assert values(tmp_path) == [[1, 1, 1], [2, 3, 3]]


def test_what_passes_is_tried_again(tmp_path: Path) -> None:
    Steps.before[:] = [passing, failing(BusyError("wait"))]
    assert run(tmp_path).outcome is Outcome.MEASURED
    assert values(tmp_path) == [[1, 2, 2]]


@pytest.mark.parametrize("error", [CorruptError("wrong answer"), BusyError("for ever"), ValueError("bug")])
def test_what_does_not_pass_ends_the_case(tmp_path: Path, error: Exception) -> None:
    Steps.before[:] = [passing, *[failing(error)] * 20]
    ending = run(tmp_path)
    assert ending.outcome is Outcome.FAILED
    assert isinstance(ending.error, type(error) if isinstance(error, MedesError) else InternalError)
    assert len(Steps.contexts) == (3 if isinstance(error, BusyError) else 1)
    Steps.before.clear()
    assert run(tmp_path).outcome is Outcome.MEASURED


def test_what_cannot_run_here_is_skipped(tmp_path: Path) -> None:
    Steps.before[:] = [failing(UnsupportedError("no such device"))]
    ending = run(tmp_path)
    assert (ending.outcome, str(ending.error)) == (Outcome.SKIPPED, "no such device")
    assert list(tmp_path.iterdir()) == []
    Steps.lacks = {"a device": "buy one"}
    ending = run(tmp_path)
    assert (ending.outcome, str(ending.error)) == (Outcome.SKIPPED, "steps: a device (buy one)")
    assert len(Steps.contexts) == 1


def test_a_case_goes_by_its_own_name(tmp_path: Path) -> None:
    ending = run(tmp_path, name="alias")
    assert ending.outcome is Outcome.SKIPPED and "it calls itself 'steps'" in str(ending.error)


def test_a_file_that_cannot_be_gone_on_with_is_a_failure(tmp_path: Path) -> None:
    running.file_of(tmp_path, "steps").write_text("mine\n")
    assert run(tmp_path).outcome is Outcome.FAILED
    assert Steps.contexts == []
