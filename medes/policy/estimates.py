"""Estimates that the policies start from: the peak rate and smoothed times. The caller passes the time."""

from __future__ import annotations

import math
from collections import deque

PEAK_WINDOW_MINUTES = 10
EWMA_WEIGHT = 0.1


class PeakRate:
    """λ: the highest number of requests in a minute of the last ten, per second."""

    def __init__(self, window_minutes: int = PEAK_WINDOW_MINUTES) -> None:
        if window_minutes < 1:
            raise ValueError("the window has at least one minute")
        self._window = window_minutes
        self._counts: deque[tuple[int, int]] = (
            deque()
        )  # (minute, requests), oldest first; empty minutes are left out

    def add(self, now_s: float) -> None:
        """A request arrived. Times must not run backwards by more than the minute they are in."""
        minute = math.floor(now_s / 60)
        if self._counts and self._counts[-1][0] >= minute:
            last, count = self._counts[-1]
            self._counts[-1] = (last, count + 1)
        else:
            self._counts.append((minute, 1))
        self._drop(minute)

    def per_second(self, now_s: float) -> float:
        self._drop(math.floor(now_s / 60))
        return max((count for _, count in self._counts), default=0) / 60

    def _drop(self, minute: int) -> None:
        while self._counts and self._counts[0][0] <= minute - self._window:
            self._counts.popleft()


class Ewma:
    """Exponentially weighted mean; the first value counts whole."""

    def __init__(self, weight: float = EWMA_WEIGHT) -> None:
        if not 0 < weight <= 1:
            raise ValueError("the weight is above 0 and at most 1")
        self._weight = weight
        self.value: float | None = None

    def add(self, sample: float) -> float:
        """Takes a sample in and returns the new mean. Raises ValueError for one that is not finite."""
        if not math.isfinite(sample):
            raise ValueError("a sample must be finite")
        self.value = sample if self.value is None else self.value + self._weight * (sample - self.value)
        return self.value
