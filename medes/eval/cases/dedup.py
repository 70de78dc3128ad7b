"""Savings and speed of the dedup engine on captured images of real functions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from medes.bench import dedup
from medes.eval.case import Context, Record
from medes.eval.cases import needs
from medes.eval.cases.lines import figures

# Key of a line → figure. Times are CPU time.
FIGURES = {
    "saved_ratio": "saved_ratio",
    "mean_patch_bytes": "mean_patch_bytes",
    "encode_us_per_page": "page_encode_us",
    "apply_us_per_page": "page_apply_us",
    "warm_bytes": "warm_bytes",
    "kept_bytes": "kept_bytes",
    "base_whole_bytes": "base_whole_bytes",
    "base_stored_bytes": "base_stored_bytes",
}


@dataclass(frozen=True)
class Options:
    """`only`: these functions; without names the project's ten."""

    instances: int = 2
    only: tuple[str, ...] = ()

    @classmethod
    def quick(cls) -> Self:
        return cls(only=("vanilla", "aes"))


class Dedup:
    """By function ("ALL": by memory) and by whose bases: those of the same function, of the others, or all of which each
    has only what the ones before do not cover ("shared")."""

    name = "dedup"
    summary = "savings and speed of the engine on captured images of real functions"
    options = Options

    def missing(self) -> dict[str, str]:
        return needs.functions()

    def run(self, context: Context) -> Iterator[Record]:
        options: Options = context.options
        for line in dedup.run(None, options.instances, True, ("medes",), only=options.only):
            yield from figures(line, FIGURES, {"function": line["function"], "bases": line["bases"]})
