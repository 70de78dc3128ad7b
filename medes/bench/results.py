"""One JSON line per measured case, with where it was measured and how often."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from medes.bench.machine import machine
from medes.quantiles import quantile

T = TypeVar("T")


def cpu_timed(work: Callable[[], T]) -> tuple[T, float]:
    """The result and the CPU seconds that all threads of this process used meanwhile. Neighbours on a shared
    machine and the number of cores do not count, so bytes over this is throughput per core."""
    begun = time.process_time()
    result = work()
    return result, time.process_time() - begun


def spread(samples: Sequence[float], digits: int = 3) -> dict[str, float | int]:
    """n, p50 and p99 of a case's samples (nothing when there are none)."""
    if not samples:
        return {"n": 0}
    values = list(samples)
    return {
        "n": len(values),
        "p50": round(quantile(values, 0.50), digits),
        "p99": round(quantile(values, 0.99), digits),
    }


def line(case: Mapping[str, Any]) -> str:
    """The case and the host it ran on as one line of JSON."""
    return json.dumps({**case, **machine()}, separators=(", ", ": "))
