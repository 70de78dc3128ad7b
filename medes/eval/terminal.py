"""A recorded shell session as an animated SVG: the lines appear as they did, pauses shortened; light and dark."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from xml.sax.saxutils import escape

from medes.eval.recording import COLUMNS, Line

PAUSE_S_MAX = 1.2
READING_S = 0.35  # between one command and the next
ROW, COLUMN, MARGIN = 17, 7.83, 16
STYLE = """
.back{fill:#ffffff;stroke:#d0d7de} .out{fill:#1f2328} .in{fill:#0550ae;font-weight:600}
@media (prefers-color-scheme:dark){.back{fill:#0d1117;stroke:#30363d} .out{fill:#e6edf3} .in{fill:#79c0ff}}
text{font:13px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;white-space:pre;opacity:0;animation:show .01s forwards}
@keyframes show{to{opacity:1}}
@media (prefers-reduced-motion:reduce){text{animation-delay:0s!important}}
"""


def times(lines: Sequence[Line]) -> list[float]:
    """When each line appears, in seconds: as recorded, with no pause longer than PAUSE_S_MAX, and time to read."""
    shown, at_s, before_s = [], 0.3, lines[0].at_s if lines else 0.0
    for number, line in enumerate(lines):
        at_s += min(PAUSE_S_MAX, line.at_s - before_s)
        if line.command and number and not lines[number - 1].command:
            at_s += READING_S
        shown.append(round(at_s, 2))
        before_s = line.at_s
    return shown


def wrapped(line: Line) -> list[Line]:
    """As a terminal shows a line that is too long for it."""
    text, parts = line.text, []
    while True:
        parts.append(dataclasses.replace(line, text=text[:COLUMNS]))
        text = text[COLUMNS:]
        if not text:
            return parts


def svg(lines: Sequence[Line], title: str) -> str:
    """The picture; the same text for the same lines."""
    lines = [part for line in lines for part in wrapped(line)]
    height = 2 * MARGIN + ROW * len(lines)
    width = round(2 * MARGIN + COLUMN * COLUMNS)
    rows = []
    for number, (line, at_s) in enumerate(zip(lines, times(lines), strict=True)):
        y = MARGIN + ROW * (number + 1) - 4
        kind = "in" if line.command else "out"
        rows.append(
            f'<text class="{kind}" x="{MARGIN}" y="{y}" style="animation-delay:{at_s}s">'
            f"{escape(line.text)}</text>"
        )
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
            f'height="{height}" xml:space="preserve" role="img" aria-label="{escape(title)}">',
            f"<style>{STYLE}</style>",
            f'<rect class="back" x=".5" y=".5" width="{width - 1}" height="{height - 1}" rx="8"/>',
            *rows,
            "</svg>\n",
        )
    )
