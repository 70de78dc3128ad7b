"""Quantiles by the nearest rank."""

from __future__ import annotations

import pytest

from medes.quantiles import quantile, quantile_or_none


def test_every_quantile_is_a_value_that_was_measured() -> None:
    values = [float(n) for n in range(100, 0, -1)]
    assert [quantile(values, q) for q in (0, 0.01, 0.5, 0.99, 1)] == [1.0, 1.0, 50.0, 99.0, 100.0]
    assert quantile([3.0, 1.0], 0.5) == 1.0


def test_nothing_measured_is_no_number() -> None:
    assert quantile_or_none([], 0.5) is None
    assert quantile_or_none([None, 1.23456], 0.99) == 1.235
    for values, q in (([], 0.5), ([1.0], 1.5)):
        with pytest.raises(ValueError, match="quantile of"):
            quantile(values, q)
