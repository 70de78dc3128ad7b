"""The pictures of an evaluation: each is drawn from the files beside it."""

from __future__ import annotations

from pathlib import Path

from medes.eval import alternatives, bars, recording, terminal
from medes.eval.report import read, spreads
from medes.eval.running import file_of

SESSION, ALTERNATIVES = "quick-start", "alternatives"
# Case → the panel that it gives to the picture of alternatives.
PANELS = {"idle-memory": alternatives.memory, "first-answer": alternatives.answers}


def draw(folder: Path) -> list[Path]:
    """Every picture whose data is there; the ones drawn. Raises what `report.read` does, not_found for a file in which
    a figure is missing."""
    drawn = {}
    if (data := folder / f"{SESSION}.json").exists():
        drawn[SESSION] = terminal.svg(recording.load(data), "The quick start in a terminal")
    files = {case: file for case in PANELS if (file := file_of(folder, case)).exists()}
    if files:
        panels = [PANELS[case](spreads(read(file))) for case, file in files.items()]
        drawn[ALTERNATIVES] = bars.svg(panels, "Medes and its alternatives, measured")
    for name, text in drawn.items():
        (folder / f"{name}.svg").write_text(text)
    return [folder / f"{name}.svg" for name in drawn]
