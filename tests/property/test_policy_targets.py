"""P1 and P2 against trying every split."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from medes.policy.estimates import Ewma, PeakRate
from medes.policy.targets import (
    ALPHA,
    FunctionLoad,
    Target,
    aggressive,
    memory_shares,
    minimise_memory,
    minimise_startup,
)

times = st.floats(0.001, 10)
counts = st.integers(0, 60)


@st.composite
def loads(draw: st.DrawFn) -> FunctionLoad:
    reuse = draw(times)
    warm = draw(st.integers(1, 1000))
    return FunctionLoad(
        peak_rate=draw(st.floats(0, 100)),
        reuse_warm_s=reuse,
        reuse_dedup_s=reuse + draw(st.floats(0, 5)),
        start_warm_s=draw(times),
        start_dedup_s=draw(times),
        bytes_warm=warm,
        bytes_dedup=draw(st.integers(0, 2 * warm)),
        bytes_restore=draw(st.integers(0, 100)),
    )


def splits(count: int) -> list[tuple[int, int]]:
    return [(count - dedup, dedup) for dedup in range(count + 1)]


@given(loads(), counts)
def test_p1_takes_the_least_memory_of_all_splits_that_meet_the_bound(load: FunctionLoad, count: int) -> None:
    target = minimise_memory(load, count)
    assert target.warm + target.dedup == count and target.purge == 0
    good = [
        s
        for s in splits(count)
        if load.capacity(*s) >= load.peak_rate and load.startup(*s) <= ALPHA * load.start_warm_s
    ]
    saves = load.bytes_dedup + load.bytes_restore < load.bytes_warm
    if not saves:
        assert target.dedup == 0
    elif target.feasible:
        # Where more dedup'd ones lower S, a bound missed at few can be met at many: any good split may be the answer.
        assert (target.warm, target.dedup) in good
        assert load.memory(target.warm, target.dedup) == min(load.memory(*s) for s in good)
    else:
        assert not good


@given(loads(), counts, st.floats(0, 100_000))
def test_p2_takes_the_least_startup_of_all_splits_that_fit(
    load: FunctionLoad, count: int, limit: float
) -> None:
    target = minimise_startup(load, count, limit)
    good = [s for s in splits(count) if load.capacity(*s) >= load.peak_rate and load.memory(*s) <= limit]
    assert target.warm + target.dedup + target.purge == count
    assert min(target.warm, target.dedup, target.purge) >= 0
    if target.feasible:
        assert (target.warm, target.dedup) in good
        best = min(load.startup(*s) for s in good)
        assert load.startup(target.warm, target.dedup) <= best * (1 + 1e-9)
    else:
        assert not good


@given(loads(), counts, st.floats(0, 100_000))
def test_what_cannot_be_met_still_fits_in_memory(load: FunctionLoad, count: int, limit: float) -> None:
    target = aggressive(load, count, limit)
    assert load.memory(target.warm, target.dedup) <= limit
    assert target.warm + target.dedup + target.purge == count
    if target.purge:
        # One more of the cheaper kind would not have fitted.
        cheapest = min(load.bytes_warm, load.bytes_dedup + load.bytes_restore)
        assert load.memory(target.warm, target.dedup) + cheapest > limit
    assume(not target.purge and target.warm)
    if load.bytes_dedup + load.bytes_restore < load.bytes_warm and load.capacity(count, 0) >= load.peak_rate:
        # No warm one beyond what the load needs.
        assert load.capacity(target.warm - 1, target.dedup + 1) < load.peak_rate or target.dedup == 0


def test_the_artifacts_closed_forms() -> None:
    """D_λ and D_lat of the prototype, for a load where both bind at different counts."""
    load = FunctionLoad(10.0, 1.0, 1.2, 0.05, 0.25, 100, 20)
    count = 20
    d_load = (count - load.peak_rate * 1.0) / (1 - 1.0 / 1.2)
    d_latency = (ALPHA * 1.0 * load.peak_rate - count) / (0.25 * 1.0 / (1.2 * 0.05) - 1)
    assert minimise_memory(load, count).dedup == math.floor(min(d_load, d_latency, count)) == 1
    benefit = 1 - 20 / 100
    assert minimise_startup(load, count, 1600).dedup == math.ceil((count - 1600 / 100) / benefit) == 5
    assert minimise_startup(load, count, 2000) == Target(20, 0)


def test_shares_follow_rates() -> None:
    assert memory_shares({}, 100) == {}
    assert memory_shares({"a": 3.0, "b": 1.0}, 1000) == {"a": 712.5, "b": 237.5}
    assert memory_shares({"a": 0.0, "b": 0.0}, 1000) == {"a": 475, "b": 475}


@given(st.lists(st.floats(0, 3000), max_size=300))
def test_peak_rate_is_the_busiest_of_the_last_ten_minutes(arrivals: list[float]) -> None:
    peak = PeakRate()
    for t in sorted(arrivals):
        peak.add(t)
    now_s = max(arrivals, default=0.0)
    current = math.floor(now_s / 60)
    minutes = [math.floor(t / 60) for t in arrivals]
    wanted = max((minutes.count(m) for m in range(current - 9, current + 1)), default=0)
    assert peak.per_second(now_s) == wanted / 60
    assert peak.per_second(now_s + 601) == 0


@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.floats(0.01, 1))
def test_ewma_stays_between_its_samples(samples: list[float], weight: float) -> None:
    mean = Ewma(weight)
    for sample in samples:
        value = mean.add(sample)
    assert min(samples) - 1e-6 <= value <= max(samples) + 1e-6


def test_nonsense_is_refused() -> None:
    good = {
        "peak_rate": 1.0,
        "reuse_warm_s": 1.0,
        "reuse_dedup_s": 1.0,
        "start_warm_s": 1.0,
        "start_dedup_s": 1.0,
    }
    for change in (
        {"peak_rate": -1.0},
        {"reuse_warm_s": 0.0},
        {"reuse_dedup_s": 0.5},
        {"start_warm_s": math.nan},
    ):
        with pytest.raises(ValueError):
            FunctionLoad(**{**good, **change}, bytes_warm=1, bytes_dedup=1)
    with pytest.raises(ValueError):
        FunctionLoad(**good, bytes_warm=0, bytes_dedup=0)
    with pytest.raises(ValueError):
        Ewma(0)
    with pytest.raises(ValueError):
        Ewma().add(math.inf)
    with pytest.raises(ValueError):
        PeakRate(0)
