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
from medes.quantiles import median
from medes.runtimes.host.host import FunctionHost
from medes.runtimes.host.hosted_instance import HostedInstance

ROUNDS = 15  # a measurement
ORDERS = ("TUUTUTTU", "UTTUTUUT")


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
    """Each pair takes turns, pairs in turn, in orders in which neither instance is asked first, last or twice in a row
    more often: drift and what is still in the caches favour none. The median of a pair's rounds; 0 and no pairs for a
    handler that takes no measurable time."""
    ratios: list[list[float]] = [[] for _ in pairs]
    for _ in range(ROUNDS):
        spent = [_Spent() for _ in pairs]
        for order in ORDERS:
            for pair, times in zip(pairs, spent, strict=True):
                await _ask_in_turns(host, pair, order, times)
        for times, found in zip(spent, ratios, strict=True):
            if times.tested_ms:
                found.append(times.untouched_ms / times.tested_ms)
    by_pair = [round(median(found), 4) for found in ratios if found]
    return Throughput(round(statistics.geometric_mean(by_pair), 4) if by_pair else 0.0, by_pair)


@dataclasses.dataclass
class _Spent:
    """Handler time of a pair in a round."""

    tested_ms: float = 0.0
    untouched_ms: float = 0.0


async def _ask_in_turns(host: FunctionHost, pair: Pair, order: str, spent: _Spent) -> None:
    spec = pair.tested.spec
    for letter in order:
        instance = pair.tested if letter == "T" else pair.untouched
        answer = await host.invoke(spec.name, spec.event, instance_id=instance.instance_id)
        if letter == "T":
            spent.tested_ms += answer.handler_ms
        else:
            spent.untouched_ms += answer.handler_ms
        await settled(instance)  # or host and agent, still busy with this one, would slow the next


async def settled(instance: HostedInstance) -> None:
    """Waits until the end of the last request has been reported."""
    while instance.busy:  # noqa: ASYNC110
        await asyncio.sleep(POLL_S)
