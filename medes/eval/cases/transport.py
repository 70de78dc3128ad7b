"""Page reads by transport, beside what bounds each in the same run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

from medes.bench import transport
from medes.eval.case import Context, Figure, Record
from medes.eval.cases.lines import Line, absent


@dataclass(frozen=True)
class Options(transport.Sizes):
    batches: Sequence[int] = (1, 16, 64, 512, 4096)

    @classmethod
    def quick(cls) -> Self:
        return cls(batches=(16,), slab_pages=256, round_bytes=1 << 20, rounds=2, latency_batches=20)


class Transport:
    """By transport, pages a batch and layout: latencies of single batches, throughput, and its ratio to memcpy, a bare
    socket, TCP or bare verbs. `connect_*`: a reader's set-up."""

    name = "transport"
    summary = "page reads by transport: latency, throughput, of what memcpy, a socket or bare verbs do"
    options = Options

    def missing(self) -> dict[str, str]:
        return {}  # the transports that cannot run here are absent figures

    def run(self, context: Context) -> Iterator[Record]:
        for line in transport.measure(sizes=context.options):
            if "skipped" in line:
                if line["benchmark"] == "transport":
                    yield absent("read_bytes_per_s", line["skipped"], {"transport": line["transport"]})
            elif line["benchmark"] == "transport_setup":
                yield from _quantiles("connect", line["connect_us"], {"transport": line["transport"]})
            elif line["benchmark"] == "transport":
                yield from _reads(line)


def _reads(line: Line) -> Iterator[Record]:
    labels = {
        "transport": line["transport"],
        "pages": str(line["pages"]),
        "layout": "scattered" if line["scattered"] else "contiguous",
    }
    yield from _quantiles("read", line["latency_us"], labels)
    yield Figure("read_bytes_per_s", round(line["gb_per_s"] * 1e9), labels)
    yield Figure("of_reference_ratio", line["of_reference"], labels)


def _quantiles(what: str, spread: Line, labels: dict[str, str]) -> Iterator[Record]:
    yield Figure(f"{what}_p50_us", spread["p50"], labels)
    yield Figure(f"{what}_p99_us", spread["p99"], labels)
