"""When a function gets a further base sandbox."""

from __future__ import annotations

# T of the paper: dedup'd sandboxes that one base serves before another is worth its memory.
BASE_THRESHOLD = 40


def needs_base(dedup_count: int, base_count: int, threshold: int = BASE_THRESHOLD) -> bool:
    """True when there is no base yet, or when dedup'd / base sandboxes exceed the threshold.

    base_count includes bases that are being made. Raises ValueError for negative counts.
    """
    if dedup_count < 0 or base_count < 0 or threshold < 1:
        raise ValueError("counts cannot be negative and the threshold is at least 1")
    return base_count == 0 or dedup_count > threshold * base_count
