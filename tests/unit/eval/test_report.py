"""What a case has measured, as it is written and read back: interrupted, damaged, somebody else's, too large."""

from __future__ import annotations

from pathlib import Path

import pytest

from medes.errors import (
    AlreadyExistsError,
    BusyError,
    CorruptError,
    InternalError,
    InvalidArgumentError,
    LimitExceededError,
    NotFoundError,
    UnsupportedError,
)
from medes.eval import report
from medes.eval.case import Absent, Figure, key, unit
from medes.eval.report import Header, Spread, read, spreads
from medes.eval.writer import Writer
from medes.limits import EVALUATION_FILE_BYTES_MAX, EVALUATION_LINE_BYTES_MAX

HEADER = Header("c", {"rounds": 3, "only": ["f"]}, {"commit": "abc", "kernel": "6", "load_average": 0.5})
ANSWER = Figure("answer_ms", 4.5, {"function": "f", "alternative": "zram"})
NONE = Absent("answer_ms", "no CRIU", {"function": "f", "alternative": "criu"})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "c.jsonl"


def write(file: Path, *repetitions: list[Figure | Absent], ended: bool = True) -> None:
    writer = Writer.open(file, HEADER)
    for records in repetitions:
        for record in records:
            writer.add(record)
        if ended:
            writer.end_repetition()
    writer.close()


def test_what_is_written_is_read(file: Path) -> None:
    write(file, [ANSWER, NONE], [ANSWER])
    found = read(file)
    assert found.header == HEADER
    assert found.repetitions == ((ANSWER, NONE), (ANSWER,))
    assert (found.interrupted, found.whole_bytes) == ((), file.stat().st_size)


def test_figures_over_repetitions(file: Path) -> None:
    write(file, *([Figure("a_ms", value), NONE] for value in (5, 1, 4, 2, 3)))
    found = spreads(read(file))
    assert found == {key("a_ms"): Spread(3, 2, 4, 5)}
    assert found.median("a_ms") == 3
    with pytest.raises(NotFoundError, match="answer_ms f: was not measured"):
        found.median("answer_ms", function="f")
    assert read(file).absent == (NONE,)


def test_a_repetition_that_was_interrupted_counts_for_nothing_and_is_gone_on_with(file: Path) -> None:
    write(file, [ANSWER], ended=False)
    assert (read(file).repetitions, read(file).interrupted) == ((), (ANSWER,))
    assert spreads(read(file)) == {}
    with file.open("ab") as torn:
        torn.write(b'{"figure": "b_ms", "val')
    assert read(file).interrupted == (ANSWER,)
    writer = Writer.open(file, HEADER)
    assert writer.measured == {ANSWER.key}
    assert not writer.add(Figure(ANSWER.name, 9.0, ANSWER.labels))
    assert writer.add(NONE)
    assert writer.end_repetition() == 2
    writer.close()
    assert read(file).repetitions == ((ANSWER, NONE),)


def test_a_file_without_a_record_goes(file: Path) -> None:
    Writer.open(file, HEADER).close()
    assert not file.exists()


def test_one_writer_at_a_time(file: Path) -> None:
    writer = Writer.open(file, HEADER)
    with pytest.raises(BusyError):
        Writer.open(file, HEADER)
    with pytest.raises(InternalError, match="answer_ms: was yielded twice"):
        for _ in range(2):
            writer.add(ANSWER)
    writer.close()


@pytest.mark.parametrize(
    "other",
    [
        Header("d", HEADER.options, HEADER.host),
        Header("c", {"rounds": 1, "only": ["f"]}, HEADER.host),
        Header("c", HEADER.options, {**HEADER.host, "commit": "def"}),
    ],
)
def test_figures_of_other_cases_options_and_commits_are_not_mixed(file: Path, other: Header) -> None:
    write(file, [ANSWER])
    before = file.read_bytes()
    with pytest.raises(AlreadyExistsError, match=r"was measured with another (case|options|commit)"):
        Writer.open(file, other)
    assert file.read_bytes() == before


def test_the_load_of_the_machine_may_differ(file: Path) -> None:
    write(file, [ANSWER])
    Writer.open(file, Header("c", HEADER.options, {**HEADER.host, "load_average": 7})).close()


DAMAGES = {
    "no JSON": b"{nothing}",
    "no object": b"[1]",
    "nested": b"[" * 10_000,
    "of no kind": b"{}",
    "no unit": b'{"figure": "answer", "value": 1, "labels": {}, "repetition": 0}',
    "not finite": b'{"figure": "a_ms", "value": NaN, "labels": {}, "repetition": 0}',
    "too large": b'{"figure": "a_ms", "value": 1' + b"0" * 400 + b', "labels": {}, "repetition": 0}',
    "no number": b'{"figure": "a_ms", "value": true, "labels": {}, "repetition": 0}',
    "labels": b'{"figure": "a_ms", "value": 1, "labels": ["x"], "repetition": 0}',
    "escapes": b'{"figure": "a_ms", "value": 1, "labels": {"f": "\\u001b[2J"}, "repetition": 0}',
    "repetition": b'{"figure": "a_ms", "value": 1, "labels": {}, "repetition": 1}',
    "lines are gone": b'{"ended": 0, "records": 2}',
    "twice": report.record_line(ANSWER, 0).encode().rstrip(),
    "long": b" " * (EVALUATION_LINE_BYTES_MAX + 1),
    "not UTF-8": b'{"absent": "a_ms", "why": "\xff", "labels": {}, "repetition": 0}',
}


@pytest.mark.parametrize("line", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_line_is_named(file: Path, line: bytes) -> None:
    write(file, [ANSWER], ended=False)
    with file.open("ab") as damaged:
        damaged.write(line + b"\n" + report.ended_line(0, 1).encode())
    with pytest.raises(CorruptError, match=r"c\.jsonl: line 3 is damaged: .") as raised:
        read(file)
    assert raised.value.object == str(file)
    before = file.read_bytes()
    with pytest.raises(CorruptError):
        Writer.open(file, HEADER)  # nor is it written to
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    "data", [b"\x7fELF", b"\n", b"{}\n", b"[]\n", b'{"benchmark": "restore"}\n', b"[" * 10_000 + b"\n"]
)
def test_a_file_of_something_else(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    for take in (read, lambda path: Writer.open(path, HEADER)):
        with pytest.raises(InvalidArgumentError, match="not what an evaluation case has measured"):
            take(file)
    assert file.read_bytes() == data


def test_a_file_of_a_newer_medes(file: Path) -> None:
    line = report.header_line(HEADER)
    file.write_text(line.replace('"readable_from": 1', '"readable_from": 2'))
    with pytest.raises(UnsupportedError, match="of a newer Medes"):
        read(file)
    file.write_text(line.replace('"version": 1', '"version": 2').replace("{", '{"more": 1, ', 1))
    assert read(file).header == HEADER


def test_a_damaged_first_line(file: Path) -> None:
    file.write_text(report.header_line(HEADER).replace('"host"', '"hose"'))
    with pytest.raises(CorruptError, match="line 1 is damaged"):
        read(file)


def test_a_file_that_is_too_large(file: Path) -> None:
    with file.open("wb") as sparse:
        sparse.truncate(EVALUATION_FILE_BYTES_MAX + 1)
    with pytest.raises(LimitExceededError, match="larger than"):
        read(file)


def test_a_file_with_too_many_records(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(file, [ANSWER, NONE])
    monkeypatch.setattr(report, "EVALUATION_RECORDS_MAX", 1)
    with pytest.raises(LimitExceededError, match="more than 1 records"):
        read(file)


def test_a_file_that_is_not_there(file: Path) -> None:
    with pytest.raises(NotFoundError):
        read(file)


@pytest.mark.parametrize(
    "name", ["answer", "ms", "_ms", "Answer_ms", "answer ms", "answer_mins", "x" * 200 + "_ms"]
)
def test_a_name_ends_with_its_unit(name: str) -> None:
    with pytest.raises(InvalidArgumentError):
        Figure(name, 1)


def test_the_longest_unit_counts() -> None:
    assert [unit(n) for n in ("read_bytes_per_s", "restores_per_s", "run_s", "answer")] == [
        "bytes_per_s",
        "per_s",
        "s",
        "",
    ]


def test_a_reason_is_one_short_line() -> None:
    for why in ("", "two\nlines", "x" * 1000):
        with pytest.raises(InvalidArgumentError):
            Absent("a_ms", why)
