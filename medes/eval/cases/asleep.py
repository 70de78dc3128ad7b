"""What unmodified programs hold, touch and answer while they sleep dedup'd."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from medes.bench import asleep
from medes.errors import CorruptError
from medes.eval.case import Context, Record
from medes.eval.cases import needs
from medes.eval.cases.lines import absent, figures

LAST = "warm_bytes"  # of a round
# Key of a line → figure.
FIGURES = {
    "saved_ratio_time_averaged": "saved_ratio",
    "base_share_bytes": "base_share_bytes",
    "asleep_ratio": "asleep_ratio",
    "faults_first_minute": "first_minute_faults_count",
    "agent_cpu_ratio": "agent_cpu_ratio",
    "probe_first_ms": "probe_first_ms",
    "probe_ms_p50": "probe_p50_ms",
    "probe_ms_p99": "probe_p99_ms",
    "probe_warm_ms_p50": "probe_warm_p50_ms",
    "warm_bytes": LAST,
}


@dataclass(frozen=True)
class Options(asleep.Options):
    """As the published figures are taken."""

    seconds: float = 600.0
    rounds: int = 2

    @classmethod
    def quick(cls) -> Self:
        return cls(programs=("http.server",), seconds=1.0, probe_every_s=0.3, rounds=1)


class Asleep:
    """By program, run (alone, probed) and round: what a function's first sleep teaches, the second knows. A probe's
    figures are of those after the third."""

    name = "asleep"
    summary = "unmodified servers asleep, alone and with probes: memory saved over time, faults, answers"
    options = Options

    def missing(self) -> dict[str, str]:
        return needs.live_driver()  # programs that are not installed are absent figures

    def run(self, context: Context) -> Iterator[Record]:
        options: Options = context.options

        def measured(program: str, run: str) -> bool:
            last = options.rounds if run in asleep.RUNS else 1
            return context.has(LAST, program=program, run=run, round=str(last))

        for line in asleep.run(options, context.progress, measured):
            labels = {"program": line["program"]}
            if "skipped" in line:
                run_label = {"run": line["run"]} if "run" in line else {}
                yield absent("saved_ratio", line["skipped"], labels | run_label)
            elif "failure" in line:
                raise CorruptError(line["failure"], object=f"{line['program']}, {line['run']}")
            else:
                labels |= {"run": line["run"], "round": str(line["round"])}
                yield from figures(line, FIGURES, labels)
