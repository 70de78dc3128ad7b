"""Quantiles and medians, defined once."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable


def quantile(values: Iterable[float], q: float) -> float:
    """The nearest rank, a value that was measured: the smallest of `values` that is not below a share of q (0 to 1) of them. Raises ValueError without values."""
    ordered = sorted(values)
    if not ordered or not 0 <= q <= 1:
        raise ValueError(f"no {q} quantile of {len(ordered)} values")
    return ordered[max(1, math.ceil(q * len(ordered))) - 1]


def quantile_or_none(values: Iterable[float | None], q: float, digits: int = 3) -> float | None:
    """The same of what was measured, rounded; None where nothing was."""
    measured = [v for v in values if v is not None]
    return round(quantile(measured, q), digits) if measured else None


def median(values: Iterable[float]) -> float:
    """Of few values: the middle one, or the mean of the two in the middle. Raises ValueError without values."""
    return statistics.median(values)


def median_or_none(values: Iterable[float | None], digits: int = 3) -> float | None:
    """The same of what was measured, rounded; None where nothing was."""
    measured = [v for v in values if v is not None]
    return round(median(measured), digits) if measured else None
