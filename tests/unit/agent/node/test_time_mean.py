"""A mean over time is that of the function that was told, however it was cut into pieces."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medes.agent.node.time_mean import TimeMean

WINDOW_S = 600.0
pieces = st.lists(
    st.tuples(st.floats(0.001, 5000.0), st.integers(-(1 << 40), 1 << 40)), min_size=1, max_size=20
)


def told(steps: list[tuple[float, int]]) -> tuple[TimeMean, float]:
    """Each value holds for so many seconds."""
    mean, now_s = TimeMean(100.0, WINDOW_S), 100.0
    for seconds, value in steps:
        mean.tell(now_s, value)
        now_s += seconds
    return mean, now_s


@given(pieces)
def test_both_means_are_the_integrals_of_what_was_told(steps: list[tuple[float, int]]) -> None:
    mean, now_s = told(steps)
    age_s, area, recent, weight = 0.0, 0.0, 0.0, 0.0
    for seconds, value in reversed(steps):
        area += value * seconds
        share = math.exp(-age_s / WINDOW_S) - math.exp(-(age_s + seconds) / WINDOW_S)
        recent, weight, age_s = recent + value * share, weight + share, age_s + seconds
    largest = max(abs(value) for _, value in steps)
    assert mean.mean(now_s) == pytest.approx(area / age_s, abs=1 + 1e-6 * largest)
    assert mean.recent(now_s) == pytest.approx(recent / weight, abs=1 + 1e-6 * largest)


@given(pieces)
def test_telling_the_same_again_changes_nothing(steps: list[tuple[float, int]]) -> None:
    halves = [(seconds / 2, value) for seconds, value in steps for _ in range(2)]
    (one, now_s), (other, _) = told(steps), told(halves)
    largest = max(abs(value) for _, value in steps)
    assert one.mean(now_s) == pytest.approx(other.mean(now_s), abs=1 + 1e-6 * largest)
    assert one.recent(now_s) == pytest.approx(other.recent(now_s), abs=1 + 1e-6 * largest)


def test_the_window_forgets_and_the_whole_does_not() -> None:
    mean, now_s = told([(3600.0, 1000), (3600.0, 0)])
    assert mean.mean(now_s) == 500.0
    assert mean.recent(now_s) < 3.0


def test_before_any_time_has_passed_it_is_what_was_told() -> None:
    mean = TimeMean(5.0, WINDOW_S)
    assert (mean.mean(5.0), mean.recent(5.0)) == (0.0, 0.0)
    mean.tell(5.0, 7)
    assert (mean.mean(5.0), mean.recent(5.0)) == (7.0, 7.0)


def test_reading_tells_nothing() -> None:
    mean = TimeMean(0.0, WINDOW_S)
    mean.tell(0.0, 10)
    assert mean.mean(1000.0) == 10.0
    mean.tell(10.0, 0)
    assert mean.mean(20.0) == 5.0
