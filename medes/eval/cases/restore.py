"""Restores of real functions on one node, and a storm of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from medes.bench import restore
from medes.eval.case import Context, Record
from medes.eval.cases import needs
from medes.eval.cases.lines import figures, restores

LAST = "control_throughput_ratio"  # of a function
# Key of a function's line → figure.
FIGURES = {
    "private_bytes": "private_bytes",
    "kept_bytes": "kept_bytes",
    "cold_start_ms_p50": "cold_start_p50_ms",
    "warm_ms_p50": "warm_p50_ms",
    "warm_ms_p99": "warm_p99_ms",
    "first_response_ms_p50": "first_response_p50_ms",
    "first_response_ms_p99": "first_response_p99_ms",
    "first_response_no_prefetch_ms_p50": "first_response_no_prefetch_p50_ms",
    "ready_ms_p50": "ready_p50_ms",
    "complete_ms_p50": "complete_p50_ms",
    "eager_complete_ms_p50": "eager_complete_p50_ms",
    "dedup_ms_p50": "dedup_p50_ms",
    "pages_prefetched": "prefetched_pages",
    "faults_demand": "demand_faults_count",
    "restored_throughput_ratio": "restored_throughput_ratio",
    "control_throughput_ratio": LAST,
}
STORM = {
    "first_response_ms_p50": "storm_first_response_p50_ms",
    "first_response_ms_p99": "storm_first_response_p99_ms",
    "complete_ms": "storm_complete_ms",
    "work_cpu_ms": "storm_cpu_ms",
    "restores_per_s": "storm_restores_per_s",
}


@dataclass(frozen=True)
class Options(restore.Options):
    """`only`: these functions; without names the project's ten."""

    with_baselines: bool = False  # they are in the case first-answer
    only: tuple[str, ...] = ()

    @classmethod
    def quick(cls) -> Self:
        return cls(rounds=1, pairs=1, storm=2, only=("vanilla",))


class Restore:
    """By function, and by sandboxes for the storm. p50 and p99 are over the rounds of one run."""

    name = "restore"
    summary = "restores of real functions on one node: first response, completion, a storm"
    options = Options

    def missing(self) -> dict[str, str]:
        return {**needs.live_driver(), **needs.functions()}

    def run(self, context: Context) -> Iterator[Record]:
        options: Options = context.options
        for line in restores(context, options, options.only, LAST):
            if line["benchmark"] == "restore":
                yield from figures(line, FIGURES, {"function": line["function"]})
            else:
                yield from figures(line, STORM, {"sandboxes": str(line["sandboxes"])})
