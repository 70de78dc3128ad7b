"""The pictures of the documentation are what their data says: nobody has drawn by hand."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from medes.eval import recording
from medes.eval.pictures import ALTERNATIVES, SESSION, draw
from medes.eval.quick_start import by_hand
from medes.eval.recording import statements

ROOT = Path(__file__).resolve().parents[2]
PICTURES = ROOT / "docs" / "pictures"


@pytest.mark.parametrize("name", [SESSION, ALTERNATIVES])
def test_a_picture_is_drawn_from_the_data_beside_it(name: str, tmp_path: Path) -> None:
    for data in (*PICTURES.glob("*.json"), *PICTURES.glob("*.jsonl")):
        shutil.copy(data, tmp_path)
    draw(tmp_path)
    assert (tmp_path / f"{name}.svg").read_text() == (PICTURES / f"{name}.svg").read_text()


def test_the_recording_is_of_the_quick_start_as_it_stands() -> None:
    typed = [line.text for line in recording.load(PICTURES / f"{SESSION}.json") if line.command]
    assert typed == [part for s in statements(by_hand(ROOT / "README.md")) for part in s.split("\n")]
