"""Measured values as bars beside each other: an SVG, light and dark, no library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH, LABEL, VALUE, BAR, GAP, HEAD = 860, 210, 120, 20, 8, 46
STYLE = """
text{font:13px system-ui,-apple-system,"Segoe UI",Helvetica,Arial,sans-serif} .title{font-weight:600;font-size:14px}
.back{fill:#ffffff;stroke:#d0d7de} .ink{fill:#1f2328} .faint{fill:#59636e} .other{fill:#afb8c1} .ours{fill:#0969da}
.second{fill:#54aeff}
@media (prefers-color-scheme:dark){.back{fill:#0d1117;stroke:#30363d} .ink{fill:#e6edf3} .faint{fill:#9198a1}
.other{fill:#6e7681} .ours{fill:#1f6feb} .second{fill:#79c0ff}}
"""


@dataclass(frozen=True, slots=True)
class Bar:
    """`parts` add up to the bar's length; the first one is drawn darkest. `text` stands behind it."""

    label: str
    parts: tuple[float, ...]
    text: str
    ours: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    title: str
    bars: tuple[Bar, ...]
    note: str = ""


def svg(panels: Sequence[Panel], title: str) -> str:
    """The panels below each other, each with its own scale. The same text for the same values."""
    rows, y = [], 12
    for panel in panels:
        rows.append(f'<text class="ink title" x="20" y="{y + 20}">{escape(panel.title)}</text>')
        if panel.note:
            rows.append(f'<text class="faint" x="20" y="{y + 38}">{escape(panel.note)}</text>')
        y += HEAD
        most = max((sum(bar.parts) for bar in panel.bars), default=0.0) or 1.0
        for bar in panel.bars:
            rows.append(
                f'<text class="ink" x="{LABEL - 10}" y="{y + 15}" text-anchor="end">{escape(bar.label)}</text>'
            )
            x = float(LABEL)
            for number, part in enumerate(bar.parts):
                length = part / most * (WIDTH - LABEL - VALUE - 20)
                kind = ("ours", "second")[min(number, 1)] if bar.ours else "other"
                rows.append(
                    f'<rect class="{kind}" x="{x:.1f}" y="{y}" width="{max(length, 0.5):.1f}" height="{BAR}"/>'
                )
                x += length
            rows.append(f'<text class="ink" x="{x + 8:.1f}" y="{y + 15}">{escape(bar.text)}</text>')
            y += BAR + GAP
        y += 14
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" width="{WIDTH}" height="{y}" '
            f'role="img" aria-label="{escape(title)}">',
            f"<style>{STYLE}</style>",
            f'<rect class="back" x=".5" y=".5" width="{WIDTH - 1}" height="{y - 1}" rx="8"/>',
            *rows,
            "</svg>\n",
        )
    )
