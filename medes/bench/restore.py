"""How fast dedup'd functions answer: first response with and without prefetch, warm, cold, and a storm.

Everything goes the way a runtime goes: NotifyActivity, Restore, the request, through a function host and an agent.
Working sets are recorded with one input and tested with others, as drift decides what a working set is worth.
Every answer is checked: the function's event must be answered after each restore as before the first dedup.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import os
import time
from collections.abc import AsyncGenerator, Callable, Collection
from typing import Any

from medes.bench import baselines, criu, throughput, zram
from medes.bench.cpu import cpu_s
from medes.bench.machine import machine
from medes.bench.rounds import ask, complete, dedup
from medes.bench.throughput import Pair, settled
from medes.demo.cluster import Cluster, local_cluster
from medes.errors import CorruptError
from medes.quantiles import quantile_or_none
from medes.runtimes.host.host import FunctionHost
from medes.runtimes.host.hosted_instance import HostedInstance
from medes.runtimes.manifest import FunctionSpec
from medes.types import RestoreReport, Sandbox

RECORD_ROUNDS = 2
OTHERS_ROUNDS = 3  # restores of the pairs whose restores are not measured
BASELINE_ROUNDS = 5
RECORD_SEED, TEST_SEED, WARM_SEED = 11, 5000, 9000


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure."""

    rounds: int = 20
    pairs: int = 3  # of a restored and an untouched instance; the first pair's restores are the ones measured
    storm: int = 32
    transport: str = "auto"
    with_baselines: bool = True
    set_up_zram: bool = False  # make a zram swap device for the comparison, where none is active


async def run(
    specs: list[FunctionSpec],
    options: Options,
    progress: Callable[[str], None] = lambda text: None,
    measured: Collection[str] = (),
) -> AsyncGenerator[dict[str, Any], None]:
    """Yields a line per function and one for the storm. `measured`: functions that need no line of their own, and are in
    the storm. Raises corrupt when an answer is not what it was."""
    async with local_cluster(1, options.transport) as cluster:
        for spec in (spec for spec in specs if spec.name not in measured):
            progress(f"{spec.name}: restoring")
            line = await _measure(cluster.host, spec, options)
            if options.with_baselines:
                progress(f"{spec.name}: baselines")
                line |= baselines.run("criu", functools.partial(criu.measure, spec, BASELINE_ROUNDS))
                line |= baselines.run(
                    "zram", functools.partial(zram.measure, spec, BASELINE_ROUNDS, options.set_up_zram)
                )
            yield {"benchmark": "restore", **line, "transport": options.transport, **machine()}
        if options.storm:
            progress(f"storm of {options.storm}: deploying")
            line = await _storm(cluster, specs, options.storm)
            yield {"benchmark": "restore_storm", **line, "transport": options.transport, **machine()}


# --- one function ------------------------------------------------------------------------------------------
async def _measure(host: FunctionHost, spec: FunctionSpec, options: Options) -> dict[str, Any]:
    base, pairs, cold_ms = await _deploy(host, spec, options.pairs)
    await dedup(host, base)
    control = await throughput.measure(host, pairs)
    first, rounds = pairs[0], options.rounds
    expected, _ = await _ask_tested(host, first, spec.event)
    warm_ms = [(await _ask_tested(host, first, spec.seeded_event(WARM_SEED + n)))[1] for n in range(rounds)]
    singly_ms = []
    for number in range(max(3, rounds // 4)):
        # A name of its own: no working set is known for it, so every page comes when it is missed or behind.
        await _register_as(host, first.tested, f"{spec.name}.unknown-{number}")
        singly_ms.append((await _round(host, first, expected, TEST_SEED + number))[0])
    await _register_as(host, first.tested, spec.name)
    for number in range(RECORD_ROUNDS):
        await _round(host, first, expected, RECORD_SEED + number)
    measured = [await _round(host, first, expected, TEST_SEED + 100 + n) for n in range(rounds)]
    first_ms = [row[0] for row in measured]
    reports = [row[1] for row in measured]
    eager_ms = [await _eager_round(host, first, expected) for _ in range(max(3, rounds // 4))]
    for pair in pairs[1:]:
        known, _ = await _ask_tested(host, pair, spec.event)
        for number in range(OTHERS_ROUNDS):
            await _round(host, pair, known, RECORD_SEED + number)
    for pair in pairs:
        for event in pair.asked:
            await ask(host, pair.untouched, event)
    warm_p50, eager_p50 = (quantile_or_none(values, 0.5) for values in (warm_ms, eager_ms))
    over_eager = [round((ms - warm_p50) / eager_p50, 3) for ms in first_ms] if warm_p50 and eager_p50 else []
    restored = await throughput.measure(host, pairs)
    await host.remove(spec.name)
    return {
        "function": spec.name,
        "n": rounds,
        "private_bytes": int(quantile_or_none([row[2].warm_bytes for row in measured], 0.5) or 0),
        "kept_bytes": int(quantile_or_none([row[2].kept_bytes for row in measured], 0.5) or 0),
        "cold_start_ms_p50": quantile_or_none(cold_ms, 0.5),
        "warm_ms_p50": warm_p50,
        "warm_ms_p99": quantile_or_none(warm_ms, 0.99),
        "first_response_ms_p50": quantile_or_none(first_ms, 0.5),
        "first_response_ms_p99": quantile_or_none(first_ms, 0.99),
        "first_response_no_prefetch_ms_p50": quantile_or_none(singly_ms, 0.5),
        "ready_ms_p50": quantile_or_none([report.ready_us / 1000 for report in reports], 0.5),
        "complete_ms_p50": quantile_or_none([report.complete_us / 1000 for report in reports], 0.5),
        "eager_complete_ms_p50": eager_p50,
        "first_response_added_over_eager": quantile_or_none(over_eager, 0.5),
        "first_response_added_over_eager_by_restore": over_eager,
        "dedup_ms_p50": quantile_or_none(
            [row[2].last_dedup.total_us / 1000 for row in measured if row[2].last_dedup], 0.5
        ),
        "pages_total": int(quantile_or_none([report.pages_total for report in reports], 0.5) or 0),
        "pages_prefetched": int(quantile_or_none([report.pages_prefetched for report in reports], 0.5) or 0),
        "faults_demand": int(quantile_or_none([report.faults_demand for report in reports], 0.5) or 0),
        "faults_demand_by_restore": [report.faults_demand for report in reports],
        "faults_zero": int(quantile_or_none([report.faults_zero for report in reports], 0.5) or 0),
        "restored_throughput_ratio": restored.ratio,
        "restored_throughput_ratio_by_pair": restored.by_pair,
        "control_throughput_ratio": control.ratio,
        "control_throughput_ratio_by_pair": control.by_pair,
        "verified": spec.idempotent,
    }


async def _deploy(
    host: FunctionHost, spec: FunctionSpec, pairs: int
) -> tuple[HostedInstance, list[Pair], list[float]]:
    """An instance to make the base of, and pairs; and their cold starts, process start to first answer."""
    cold_ms = []
    instances: list[HostedInstance] = []
    for number in range(1 + 2 * pairs):
        if number == 0:
            (instance,) = await host.deploy(spec, 1)
        else:
            instance = await host.add_instance(host.functions[spec.name])
        cold_ms.append(instance.cold_start_ms + (await ask(host, instance, spec.event))[1])
        instances.append(instance)
    for instance in instances:
        for request in range(3):
            await ask(host, instance, spec.seeded_event(100 + request))
    base, others = instances[0], instances[1:]
    return base, [Pair(*two) for two in zip(others[::2], others[1::2], strict=True)], cold_ms


async def _ask_tested(host: FunctionHost, pair: Pair, event: Any) -> tuple[Any, float]:
    pair.asked.append(event)
    return await ask(host, pair.tested, event)


async def _round(
    host: FunctionHost, pair: Pair, expected: Any, seed: int
) -> tuple[float, RestoreReport, Sandbox]:
    """Dedup, a request with an input of its own, the rest of the restore, and the check. Returns the first
    response's milliseconds, the restore's report and the sandbox as it was dedup'd."""
    instance = pair.tested
    dedupd = await dedup(host, instance)
    _, first_ms = await _ask_tested(host, pair, instance.spec.seeded_event(seed))
    report = await complete(host, instance)
    answer, _ = await _ask_tested(host, pair, instance.spec.event)
    if instance.spec.idempotent and answer != expected:
        raise CorruptError("answered otherwise after a restore", object=instance.instance_id)
    return first_ms, report, dedupd


async def _eager_round(host: FunctionHost, pair: Pair, expected: Any) -> float:
    """Dedup, a restore that answers with the last page in, and the check. Returns the milliseconds it took."""
    instance = pair.tested
    await dedup(host, instance)
    await host.nodes[instance.node_id].restore(instance, eager=True)
    report = await complete(host, instance)
    answer, _ = await _ask_tested(host, pair, instance.spec.event)
    if instance.spec.idempotent and answer != expected:
        raise CorruptError("answered otherwise after an eager restore", object=instance.instance_id)
    return report.complete_us / 1000


async def _register_as(host: FunctionHost, instance: HostedInstance, function: str) -> None:
    """The agent knows the instance under another function's name from now on."""
    await settled(instance)
    node = host.nodes[instance.node_id]
    await node.register(instance, purge_kills=False)  # or the purge would end it
    await node.purge(instance)
    spec = instance.spec
    instance.spec = dataclasses.replace(spec, name=function)
    try:
        await node.register(instance)
    finally:
        instance.spec = spec


# --- many at once ------------------------------------------------------------------------------------------
async def _storm(cluster: Cluster, specs: list[FunctionSpec], sandboxes: int) -> dict[str, Any]:
    """Dedups `sandboxes` instances of the functions in turn, then sends all of them a request at one moment."""
    host = cluster.host
    instances: list[HostedInstance] = []
    for number in range(sandboxes):
        spec = specs[number % len(specs)]
        if spec.name not in host.functions:
            instances += await host.deploy(spec, 1)
        else:
            instances.append(await host.add_instance(host.functions[spec.name]))
    expected = []
    for number, instance in enumerate(instances):
        await ask(host, instance, instance.spec.seeded_event(200 + number))
        expected.append((await ask(host, instance, instance.spec.event))[0])
    # A first round, one after the other, leaves the working sets known.
    for instance in instances:
        await dedup(host, instance)
    for instance in instances:
        await ask(host, instance, instance.spec.event)
        await complete(host, instance)
    warm_bytes = sum([(await dedup(host, instance)).warm_bytes for instance in instances])
    pids = [process.pid for process in cluster.daemons.values()] + [i.pid for i in instances] + [os.getpid()]
    work_s, begun = cpu_s(pids), time.perf_counter()
    answers = await asyncio.gather(*(ask(host, i, i.spec.event) for i in instances))
    answered_ms = (time.perf_counter() - begun) * 1000
    await asyncio.gather(*(complete(host, instance) for instance in instances))
    total_ms = (time.perf_counter() - begun) * 1000
    work_ms = (cpu_s(pids) - work_s) * 1000
    for instance, (answer, _), before in zip(instances, answers, expected, strict=True):
        if instance.spec.idempotent and answer != before:
            raise CorruptError("answered otherwise after the storm", object=instance.instance_id)
    for spec in specs:
        if spec.name in host.functions:
            await host.remove(spec.name)
    first_ms = [row[1] for row in answers]
    cores = len(os.sched_getaffinity(0))
    return {
        "sandboxes": sandboxes,
        "private_bytes": warm_bytes,
        "first_response_ms_p50": quantile_or_none(first_ms, 0.5),
        "first_response_ms_p99": quantile_or_none(first_ms, 0.99),
        "answered_ms": round(answered_ms, 3),
        "complete_ms": round(total_ms, 3),
        "work_cpu_ms": round(work_ms, 3),
        "complete_over_work_per_core": round(total_ms / (work_ms / cores), 3) if work_ms else None,
        "restores_per_s": round(sandboxes / (total_ms / 1000), 2),
        "bytes_per_s": round(warm_bytes / (total_ms / 1000)),
        "verified": all(instance.spec.idempotent for instance in instances),
    }
