"""Whether a function runs slower after restores: handler time of never dedup'd instances over that of restored ones.

Instances of one function differ by some percent among themselves, for as long as they live (where their memory lies, how
their threads fall on the cores), so one pair proves nothing: several pairs are compared, before and after.
"""

from __future__ import annotations

import asyncio
import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

from medes.demo.driver import POLL_S
from medes.faas.host import FunctionHost
from medes.faas.hosted import HostedInstance

EIGHTS = 30  # a measurement and pair


@dataclasses.dataclass
class Pair:
    """Two instances that are asked the same in the same order, since functions grow with what they have served; one of
    them is restored in between."""

    tested: HostedInstance
    untouched: HostedInstance
    asked: list[Any] = dataclasses.field(default_factory=list)  # of `tested`, and not yet of `untouched`


@dataclasses.dataclass(frozen=True)
class Throughput:
    """untouched's handler time over tested's: 1 is equal, below 1 the tested one is slower."""

    ratio: float  # the geometric mean of the pairs
    by_pair: list[float]


async def measure(host: FunctionHost, pairs: Sequence[Pair]) -> Throughput:
    """Each pair takes turns, pairs in turn: A B B A, then B A A B, so that neither drift favours one nor that what was
    asked last is still in the caches. The median of a pair's such eights; 0 and no pairs for a handler that takes no
    measurable time."""
    ratios: list[list[float]] = [[] for _ in pairs]
    for _ in range(EIGHTS):
        for pair, found in zip(pairs, ratios, strict=True):
            if (ratio := await _eight(host, pair)) is not None:
                found.append(ratio)
    by_pair = [round(statistics.median(found), 4) for found in ratios if found]
    return Throughput(round(statistics.geometric_mean(by_pair), 4) if by_pair else 0.0, by_pair)


async def settled(instance: HostedInstance) -> None:
    """Waits until the end of the last request has been reported."""
    while instance.busy:  # noqa: ASYNC110
        await asyncio.sleep(POLL_S)


async def _eight(host: FunctionHost, pair: Pair) -> float | None:
    spec, a, b = pair.tested.spec, pair.tested, pair.untouched
    spent_ms = {a.instance_id: 0.0, b.instance_id: 0.0}
    for instance in (a, b, b, a, b, a, a, b):
        answer = await host.invoke(spec.name, spec.event, instance_id=instance.instance_id)
        spent_ms[instance.instance_id] += answer.handler_ms
        await settled(instance)  # or host and agent, still busy with this one, would slow the next
    return spent_ms[b.instance_id] / spent_ms[a.instance_id] if spent_ms[a.instance_id] else None
