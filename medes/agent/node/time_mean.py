"""A value's mean over time, for values of which an instant says nothing.

Whoever knows the value tells it whenever it may have changed; it counts as holding from then on until it is told again. The
mean over the recent past weighs what was t seconds ago with exp(-t / window), as the kernel's load averages do. So both means
take the same few numbers, however long they are over.
"""

from __future__ import annotations

import math
from typing import NamedTuple


class _Told(NamedTuple):
    """What is known when a value was told last. Replaced as one, so that other threads may read."""

    at_s: float
    value: float
    area: float  # the value times the seconds that it held, since the begin
    recent: float  # the same, weighed and divided by the window
    weight: float  # of all that `recent` has: below 1 as long as the window is not full


class TimeMean:
    """The value is 0 until the first one is told. Told by one thread, read by any."""

    def __init__(self, now_s: float, window_s: float) -> None:
        self._begin_s = now_s
        self._window_s = window_s
        self._told = _Told(now_s, 0.0, 0.0, 0.0, 0.0)

    def tell(self, now_s: float, value: float) -> None:
        """It has this value from now on."""
        self._told = self._by(now_s)._replace(value=value)

    def mean(self, now_s: float) -> float:
        """Since the begin."""
        by_now = self._by(now_s)
        seconds = by_now.at_s - self._begin_s
        return by_now.area / seconds if seconds > 0 else by_now.value

    def recent(self, now_s: float) -> float:
        """Over the window."""
        by_now = self._by(now_s)
        return by_now.recent / by_now.weight if by_now.weight > 0 else by_now.value

    def _by(self, now_s: float) -> _Told:
        told = self._told
        seconds = max(0.0, now_s - told.at_s)
        new = -math.expm1(-seconds / self._window_s)
        return _Told(
            told.at_s + seconds,
            told.value,
            told.area + told.value * seconds,
            told.recent * (1 - new) + told.value * new,
            told.weight * (1 - new) + new,
        )
