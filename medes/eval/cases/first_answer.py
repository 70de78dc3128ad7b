"""How long the first request after idle waits, with Medes and with each alternative, in one run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from medes.bench import restore
from medes.eval.case import Context, Figure, Record
from medes.eval.cases import needs
from medes.eval.cases.lines import absent, restores

FIGURE = "first_answer_ms"
LAST = "rounds_count"  # of a function
# The alternative → the figure of `medes bench restore` that it stands for.
ALTERNATIVES = {
    "warm": "warm_ms_p50",
    "medes": "first_response_ms_p50",
    "zram": "zram_first_response_ms_p50",
    "criu": "criu_first_response_ms_p50",
    "cold": "cold_start_ms_p50",
}


@dataclass(frozen=True)
class Options:
    """`rounds`: restores of a function. `set_up_zram`: as root, the machine swaps to a zram device of the benchmark's
    while that is measured; without, to one that is active. `only`: these functions."""

    rounds: int = 20
    set_up_zram: bool = True
    only: tuple[str, ...] = ()

    @classmethod
    def quick(cls) -> Self:
        return cls(rounds=1, set_up_zram=False, only=("vanilla",))


class FirstAnswer:
    """`first_answer_ms` by function and alternative: the median of its rounds, the function's own work included."""

    name = "first-answer"
    summary = (
        "first answer of real functions after idle: kept warm, Medes, zram (swaps the machine), CRIU, cold"
    )
    options = Options

    def missing(self) -> dict[str, str]:
        return {**needs.live_driver(), **needs.functions()}

    def run(self, context: Context) -> Iterator[Record]:
        options: Options = context.options
        asked = restore.Options(options.rounds, pairs=1, storm=0, set_up_zram=options.set_up_zram)
        for line in restores(context, asked, options.only, LAST):
            function = {"function": line["function"]}
            for alternative, key in ALTERNATIVES.items():
                labels = {**function, "alternative": alternative}
                if line.get(key) is not None:
                    yield Figure(FIGURE, line[key], labels)
                else:
                    yield absent(FIGURE, line.get(f"{alternative}_skipped", "not measured"), labels)
            yield Figure(LAST, line["n"], function)
