"""The paper's policies P1 and P2: how many sandboxes of a function to keep warm, how many dedup'd.

With W warm and D dedup'd sandboxes, C = W + D, rates in requests per second, times in seconds:
capacity W/R_W + D/R_D must exceed the peak rate λ, memory is W·m_W + D·(m_D + m_R), and the start-up cost per
request S = (W/R_W·s_W + D/R_D·s_D)/λ. P1 takes the least memory with S ≤ α·s_W; P2 takes the least S within a
share of memory. Both are decided exactly, in integers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

# Bound on S over a warm start's cost (P1), and the share of all memory that functions may have (P2).
ALPHA = 2.5
MEMORY_SHARE = 0.95


@dataclass(frozen=True, slots=True)
class FunctionLoad:
    """What is known of one function.

    peak_rate is λ. start_* is the time until the first response of a warm or dedup'd sandbox, reuse_* that plus the
    execution: how long one request keeps a sandbox busy. bytes_dedup is what a dedup'd sandbox still holds,
    bytes_restore what its restore needs for the moment.
    """

    peak_rate: float
    reuse_warm_s: float
    reuse_dedup_s: float
    start_warm_s: float
    start_dedup_s: float
    bytes_warm: int
    bytes_dedup: int
    bytes_restore: int = 0

    def __post_init__(self) -> None:
        times = (self.reuse_warm_s, self.reuse_dedup_s, self.start_warm_s, self.start_dedup_s)
        if not all(math.isfinite(t) and t > 0 for t in times) or self.reuse_dedup_s < self.reuse_warm_s:
            raise ValueError("times must be positive, and a dedup start no quicker than a warm one")
        if not (math.isfinite(self.peak_rate) and self.peak_rate >= 0) or self.bytes_warm <= 0:
            raise ValueError("the rate cannot be negative, nor a warm sandbox empty")
        if min(self.bytes_dedup, self.bytes_restore) < 0:
            raise ValueError("memory cannot be negative")

    def capacity(self, warm: int, dedup: int) -> float:
        """Requests per second that these sandboxes can serve."""
        return warm / self.reuse_warm_s + dedup / self.reuse_dedup_s

    def memory(self, warm: int, dedup: int) -> int:
        return warm * self.bytes_warm + dedup * (self.bytes_dedup + self.bytes_restore)

    def startup(self, warm: int, dedup: int) -> float:
        """S in seconds; 0 without load."""
        if self.peak_rate == 0:
            return 0.0
        cost = warm / self.reuse_warm_s * self.start_warm_s + dedup / self.reuse_dedup_s * self.start_dedup_s
        return cost / self.peak_rate


@dataclass(frozen=True, slots=True)
class Target:
    """How many to have in each state. Not feasible: the aim cannot be met, and this is the nearest."""

    warm: int
    dedup: int
    purge: int = 0
    feasible: bool = True


def _most_dedup_for_load(load: FunctionLoad, count: int) -> int:
    """The largest D for which C - D warm and D dedup'd serve the peak rate; -1 if not even all warm do."""
    return _largest(count, lambda dedup: load.capacity(count - dedup, dedup) >= load.peak_rate)


def _largest(count: int, holds: Callable[[int], bool]) -> int:
    """The largest D in 0..count with holds(D), for a predicate that once false stays false; -1 for none."""
    low, high = -1, count
    while low < high:
        middle = (low + high + 1) // 2
        if holds(middle):
            low = middle
        else:
            high = middle - 1
    return low


def aggressive(load: FunctionLoad, count: int, memory_limit_bytes: float = math.inf) -> Target:
    """What to do when the aim cannot be met: warm only as many as the load needs and memory allows, others dedup'd.

    What fits in no state is purged.
    """
    most = _most_dedup_for_load(load, count)
    warm = count if most < 0 else count - most
    per_dedup = load.bytes_dedup + load.bytes_restore
    # Memory comes first: fewer warm ones, then fewer at all.
    while warm > 0 and load.memory(warm, count - warm) > memory_limit_bytes and per_dedup < load.bytes_warm:
        excess = load.memory(warm, count - warm) - memory_limit_bytes
        warm -= min(warm, max(1, int(excess // (load.bytes_warm - per_dedup))))
    dedup = count - warm
    if load.memory(warm, dedup) > memory_limit_bytes:
        if per_dedup < load.bytes_warm:
            dedup = min(dedup, int(memory_limit_bytes // per_dedup)) if per_dedup else dedup
        else:  # dedup saves nothing: all that stay are warm
            warm, dedup = min(count, int(memory_limit_bytes // load.bytes_warm)), 0
    return Target(warm, dedup, count - warm - dedup, feasible=False)


def minimise_memory(load: FunctionLoad, count: int, alpha: float = ALPHA) -> Target:
    """P1: the most dedup'd sandboxes of `count` for which the load is served and S ≤ alpha · s_W."""
    if count < 0 or alpha <= 0:
        raise ValueError("a count cannot be negative, and alpha is positive")
    if load.bytes_dedup + load.bytes_restore >= load.bytes_warm:
        return Target(count, 0, feasible=load.capacity(count, 0) >= load.peak_rate)
    most = _most_dedup_for_load(load, count)
    if most < 0:
        return aggressive(load, count)
    bound_s = alpha * load.start_warm_s
    # S is linear in D: the best D is at the end of the range that meets the bound.
    if load.startup(count - most, most) <= bound_s:
        return Target(count - most, most)
    best = _largest(most, lambda dedup: load.startup(count - dedup, dedup) <= bound_s)
    return Target(count - best, best) if best >= 0 else aggressive(load, count)


def minimise_startup(load: FunctionLoad, count: int, memory_limit_bytes: float) -> Target:
    """P2: the split of `count` with the least S that serves the load within memory_limit_bytes."""
    if count < 0 or memory_limit_bytes < 0:
        raise ValueError("neither a count nor a limit can be negative")
    most = _most_dedup_for_load(load, count)
    saving = load.bytes_warm - load.bytes_dedup - load.bytes_restore
    excess = count * load.bytes_warm - memory_limit_bytes
    least = 0 if excess <= 0 else math.ceil(excess / saving) if saving > 0 else count + 1
    if saving < 0 and excess <= 0:
        # What a restore needs outweighs what the dedup state saves: each dedup'd sandbox costs memory.
        most = min(most, math.floor(excess / saving))
    if most < 0 or least > most:
        return aggressive(load, count, memory_limit_bytes)
    # Where a dedup start costs a request less of a sandbox's time than a warm one, more of them is better.
    cheaper = load.startup(count - most, most) < load.startup(count - least, least)
    dedup = most if cheaper else least
    return Target(count - dedup, dedup)


def memory_shares(
    peak_rates: Mapping[str, float], memory_bytes: float, share: float = MEMORY_SHARE
) -> dict[str, float]:
    """P2 with many functions: memory in proportion to arrival rates (evenly while nothing arrives)."""
    if not peak_rates:
        return {}
    total = sum(peak_rates.values())
    if total <= 0:
        return dict.fromkeys(peak_rates, share * memory_bytes / len(peak_rates))
    return {name: share * memory_bytes * rate / total for name, rate in peak_rates.items()}
