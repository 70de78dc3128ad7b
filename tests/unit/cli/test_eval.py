"""medes eval: what it prints, counts and ends with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pytest

from medes import plugins
from medes.cli.main import run
from medes.errors import CorruptError, UnsupportedError
from medes.eval.case import Context, Figure, Record
from medes.plugins import Kind


@dataclass(frozen=True)
class Options:
    @classmethod
    def quick(cls) -> Self:
        return cls()


class Works:
    name = "works"
    summary = "one figure"
    options = Options

    def missing(self) -> dict[str, str]:
        return {}

    def run(self, context: Context) -> Iterator[Record]:
        yield Figure("a_ms", 1)


class Lacks(Works):
    name = "lacks"

    def missing(self) -> dict[str, str]:
        return {"a device": "buy one"}


class Fails(Works):
    name = "fails"

    def run(self, context: Context) -> Iterator[Record]:
        raise CorruptError("wrong answer")


class Breaks(Works):
    name = "breaks"

    def run(self, context: Context) -> Iterator[Record]:
        raise KeyError("x")


CASES = {kind.name: f"{__name__}:{kind.__name__}" for kind in (Works, Lacks, Fails, Breaks)}


@pytest.fixture(autouse=True)
def cases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(plugins.OWN, Kind.EVALUATION_CASE, {**CASES, "gone": "no_such_module:Case"})


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = run(["eval", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_what_there_is_and_what_is_missing_for_it(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "list")
    assert code == 0 and "a device → buy one" in out
    _, out, _ = call(capsys, "list", "--json")
    missing = {row["name"]: row["missing"] for row in json.loads(out)}
    assert (missing["works"], missing["lacks"]) == ({}, {"a device": "buy one"})
    assert "no_such_module:Case cannot be had" in missing["gone"]["unsupported"]


def test_one_that_cannot_run_is_counted_and_one_that_fails_decides_the_end(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out_folder = tmp_path / "a" / "b"
    code, out, err = call(capsys, "run", "--out", str(out_folder), "--json")
    told = json.loads(out)
    assert code == CorruptError.exit_code
    assert {k: v for k, v in told.items() if k != "cases"} == {
        "measured": 1,
        "complete": 0,
        "skipped": 2,
        "failed": 2,
    }
    rows = {row["name"]: row for row in told["cases"]}
    assert rows["works"] == {
        "name": "works",
        "outcome": "measured",
        "records": 1,
        "file": str(out_folder / "works.jsonl"),
        "why": "",
    }
    assert rows["lacks"]["why"] == "lacks: a device (buy one)"
    assert rows["breaks"]["why"] == "breaks: KeyError: 'x' (a bug in the case)"
    assert "works 1/1: a_ms 1\n" in err and "medes: corrupt: wrong answer\n" in err
    code, out, _ = call(capsys, "run", "works", "lacks", "--out", str(out_folder))
    assert code == UnsupportedError.exit_code  # one that was named
    assert out.splitlines()[-1] == "0 measured, 1 complete, 1 skipped, 0 failed"


def test_all_that_can_run_is_enough_where_none_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(plugins.OWN, Kind.EVALUATION_CASE, {name: CASES[name] for name in ("works", "lacks")})
    code, out, _ = call(capsys, "run", "--out", str(tmp_path))
    assert (code, out.splitlines()[-1]) == (0, "1 measured, 0 complete, 1 skipped, 0 failed")


def test_a_bug_in_a_case_is_shown_to_who_asks(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDES_DEBUG", "1")
    _, _, err = call(capsys, "run", "breaks", "--out", str(tmp_path))
    assert 'raise KeyError("x")' in err


def test_an_unknown_case_runs_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, err = call(capsys, "run", "works", "nobody", "--out", str(tmp_path / "out"))
    assert code == UnsupportedError.exit_code and "one of works, lacks" in err
    assert not (tmp_path / "out").exists()


def test_a_folder_without_data_has_no_pictures(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, _ = call(capsys, "draw", str(tmp_path))
    assert code == 0 and out.startswith("nothing to draw")
    assert call(capsys, "draw", str(tmp_path), "--json")[1] == '{\n  "drawn": []\n}\n'
