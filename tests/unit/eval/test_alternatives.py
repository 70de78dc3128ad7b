"""The panels that compare Medes with its alternatives: what is counted, and what is missing."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterable
from pathlib import Path

import pytest

from medes.errors import NotFoundError
from medes.eval import alternatives, bars, pictures
from medes.eval.case import Absent, Figure, Record
from medes.eval.report import Header, Spreads, read, spreads
from medes.eval.running import file_of
from medes.eval.writer import Writer

MEMORY = [
    *(
        Figure(name, value, {"alternative": alternative})
        for alternative, kept in (("medes", 10), ("zram-zstd", 60), ("ksm", 70), ("somebody's", 1))
        for name, value in (("warm_bytes", 200), ("kept_bytes", kept))
    ),
    Figure("first_bytes", 100),
    Figure("base_bytes", 60),
    Figure("first_kept_bytes", 5),
    Figure("registry_bytes", 3),
    Figure("functions_count", 10),
]
ANSWERS = [
    Figure("first_answer_ms", ms, {"function": function, "alternative": alternative})
    for function, alternative, ms in (
        ("f", "warm", 2.0), ("f", "medes", 4.0), ("f", "criu", 40.0), ("g", "warm", 2.0), ("g", "medes", 6.0),
    )
] + [Figure("rounds_count", 20, {"function": "f"})]  # fmt: skip
NO_CRIU = Absent("first_answer_ms", "g has threads", {"function": "g", "alternative": "criu"})


def written(folder: Path, case: str, records: Iterable[Record]) -> Spreads:
    writer = Writer.open(file_of(folder, case), Header(case, {}, {}))
    for record in records:
        writer.add(record)
    writer.end_repetition()
    writer.close()
    return spreads(read(file_of(folder, case)))


def test_base_pages_are_paid_for_and_one_of_the_instances(tmp_path: Path) -> None:
    panel = alternatives.memory(written(tmp_path, "idle-memory", MEMORY))
    by_label = {bar.label: bar for bar in panel.bars}
    assert sum(by_label["Medes"].parts) == pytest.approx((60 + 10 + 5 + 3) / 300)
    assert sum(by_label["KSM"].parts) == pytest.approx((100 + 70) / 300)
    assert sum(by_label["zram (zstd)"].parts) == pytest.approx(60 / 200)
    assert "10 Python functions, 3 instances each" in panel.title
    assert [bar.label for bar in panel.bars] == [
        "Medes",
        "zram (zstd)",
        "KSM",
    ]  # the least first, whoever it is


def test_a_baseline_that_ran_for_some_functions_only_is_left_out(tmp_path: Path) -> None:
    panel = alternatives.answers(written(tmp_path, "first-answer", [*ANSWERS, NO_CRIU]))
    assert [(bar.label, bar.text) for bar in panel.bars] == [("kept warm", "2.0 ms"), ("Medes", "5.0 ms")]
    assert "mean of 2 functions' medians, 20 restores each" in panel.note


def test_a_picture_is_of_the_cases_that_are_there(tmp_path: Path) -> None:
    assert pictures.draw(tmp_path) == []
    written(tmp_path, "first-answer", ANSWERS)
    (picture,) = pictures.draw(tmp_path)
    one = picture.read_text()
    assert "First answer" in one and "Memory of" not in one
    written(tmp_path, "idle-memory", MEMORY)
    pictures.draw(tmp_path)
    assert "First answer" in picture.read_text() and "Memory of" in picture.read_text()


@pytest.mark.parametrize("draw", [alternatives.memory, alternatives.answers])
def test_half_of_the_measurements_is_no_panel(tmp_path: Path, draw: object) -> None:
    assert callable(draw)
    with pytest.raises(NotFoundError, match="was not measured"):
        draw(written(tmp_path, "c", MEMORY[:2]))


def test_lengths_are_to_scale(tmp_path: Path) -> None:
    panel = alternatives.memory(written(tmp_path, "idle-memory", MEMORY))
    root = ET.fromstring(bars.svg([panel], "title"))
    rects = [node for node in root.iter("{http://www.w3.org/2000/svg}rect") if node.get("class") != "back"]
    base, patches, zstd, *_ = (float(node.get("width", "")) for node in rects)
    assert base / zstd == pytest.approx((60 / 300) / (60 / 200), rel=0.01)
    assert patches / base == pytest.approx(18 / 60, rel=0.01)
