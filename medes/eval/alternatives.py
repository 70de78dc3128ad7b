"""Medes beside what one would use instead: the panels of docs/pictures/alternatives.svg, from what the cases idle-memory
and first-answer have measured."""

from __future__ import annotations

import statistics

from medes.errors import NotFoundError
from medes.eval.bars import Bar, Panel
from medes.eval.case import key
from medes.eval.report import Spreads

OURS = "medes"
# Alternative of idle-memory → what it is called, and whether first instances stay for others.
MEMORY = {
    OURS: ("Medes", True),
    "zram-zstd": ("zram (zstd)", False),
    "zram-lz4": ("zram (lz4)", False),
    "paper": ("the paper's patches", True),
    "ksm": ("KSM", True),
}
# Alternative of first-answer → what it is called.
ANSWERS = {"warm": "kept warm", OURS: "Medes", "zram": "zram", "criu": "CRIU", "cold": "cold start"}


def memory(measured: Spreads) -> Panel:
    """What idle instances keep of their memory, base pages included. Raises not_found where something of it was not
    measured."""
    first = measured.median("first_bytes")
    base = measured.median("base_bytes")
    bars = []
    for alternative in measured.values_of("alternative"):
        if alternative not in MEMORY:
            continue
        label, has_bases = MEMORY[alternative]
        warm = measured.median("warm_bytes", alternative=alternative)
        kept = measured.median("kept_bytes", alternative=alternative)
        whole = warm + first
        parts: tuple[float, ...]
        if alternative == OURS:
            beside = measured.median("first_kept_bytes") + measured.median("registry_bytes")
            parts = base / whole, (kept + beside) / whole
        elif has_bases:
            parts = first / whole, kept / whole
        else:  # what compresses page by page does so with the first instance as with the others
            parts = (kept / warm,)
        text = f"{100 * sum(parts):.0f} %"
        bars.append(Bar(label, parts, text, ours=alternative == OURS))
    bars.sort(key=lambda bar: sum(bar.parts))
    functions = measured.median("functions_count")
    instances = 1 + round(measured.median("warm_bytes", alternative=OURS) / first)
    return Panel(
        f"Memory of idle sandboxes, of what they hold awake: {functions:g} Python functions, {instances} instances each",
        tuple(bars),
        "captured images, ASLR on, every page rebuilt and compared; dark: base pages; light: patches, and Medes' fingerprint registry",
    )


def answers(measured: Spreads) -> Panel:
    """How long the first request after idle waits, mean of the functions' medians. An alternative that could not be
    measured for some function is left out. Raises not_found where nothing was measured."""
    functions = measured.values_of("function")
    if not functions:
        raise NotFoundError("was not measured", object="first_answer_ms")
    bars = []
    for alternative, label in ANSWERS.items():
        keys = [key("first_answer_ms", function=f, alternative=alternative) for f in functions]
        if all(k in measured for k in keys):
            mean_ms = statistics.fmean(measured[k].median for k in keys)
            bars.append(Bar(label, (mean_ms,), f"{mean_ms:.1f} ms", ours=alternative == OURS))
    rounds = measured.median("rounds_count", function=functions[0])
    return Panel(
        "First answer after idle, the function's own work included",
        tuple(bars),
        f"mean of {len(functions)} functions' medians, {rounds:g} restores each, bases on the same node",
    )
