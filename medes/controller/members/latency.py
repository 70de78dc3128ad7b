"""Quantiles over the most recent measurements, bounded memory. Thread-safe."""

from __future__ import annotations

import threading
from collections import deque

from medes.limits import LATENCY_SAMPLES_MAX
from medes.quantiles import quantile


class RecentLatencies:
    """Keeps the last LATENCY_SAMPLES_MAX values."""

    def __init__(self) -> None:
        self._values: deque[float] = deque(maxlen=LATENCY_SAMPLES_MAX)
        self._lock = threading.Lock()

    def add(self, value: float) -> None:
        with self._lock:
            self._values.append(value)

    def quantile(self, q: float) -> float:
        """The nearest-rank quantile (0 ≤ q ≤ 1); 0 without measurements."""
        with self._lock:
            values = list(self._values)
        return quantile(values, q) if values else 0.0
