"""What a restore adds to a first answer with its base pages here, and with them on another node.

One run has all cases, in turns: an instance on the base's own node, one on a node that keeps none of other nodes' base
pages, and one on a node that keeps those of its working sets. Each restores several times from the first on, so that
what the first ones pay, before anything is known or kept, is told apart from the rest.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator, Callable
from typing import Any

from medes.bench.machine import machine
from medes.bench.rounds import ask, complete, dedup
from medes.demo.cluster import local_cluster
from medes.errors import CorruptError
from medes.quantiles import quantile_or_none
from medes.runtimes.host.host import FunctionHost
from medes.runtimes.host.hosted_instance import HostedInstance
from medes.runtimes.manifest import FunctionSpec
from medes.types import RestoreReport

CASES = {"node1": "local", "node2": "remote", "node3": "remote, kept"}
KEPT_NONE = ("--remote-pages-limit-bytes", "0")
WARM_ROUNDS = 10
SETTLED = 2  # restores before those that count as settled
WARM_SEED, TEST_SEED = 9000, 5000


@dataclasses.dataclass
class _Case:
    instance: HostedInstance
    expected: Any = None
    warm_ms: list[float] = dataclasses.field(default_factory=list)
    first_ms: list[float] = dataclasses.field(default_factory=list)
    reports: list[RestoreReport] = dataclasses.field(default_factory=list)


async def run(
    specs: list[FunctionSpec],
    rounds: int,
    transport: str = "auto",
    progress: Callable[[str], None] = lambda text: None,
) -> AsyncGenerator[dict[str, Any], None]:
    """Yields a line per function and case. Raises corrupt when an answer is not what it was."""
    async with local_cluster(3, transport, node_options={"node2": KEPT_NONE}) as cluster:
        for spec in specs:
            progress(f"{spec.name}: bases here and elsewhere")
            for case in await _measure(cluster.host, spec, rounds):
                yield {
                    "benchmark": "restore_remote",
                    "function": spec.name,
                    "case": CASES[case.instance.node_id],
                    **_figures(case),
                    "transport": transport,
                    **machine(),
                }


async def _measure(host: FunctionHost, spec: FunctionSpec, rounds: int) -> list[_Case]:
    # In turn over the nodes: the first is the one whose base all others use.
    base, *others = await host.deploy(spec, 4)
    cases = [_Case(instance) for instance in others]
    for instance in (base, *others):
        for number in range(3):
            await ask(host, instance, spec.seeded_event(100 + number))
    await dedup(host, base)
    for case in cases:
        case.expected, _ = await ask(host, case.instance, spec.event)
        for number in range(WARM_ROUNDS):
            case.warm_ms.append((await ask(host, case.instance, spec.seeded_event(WARM_SEED + number)))[1])
    for number in range(rounds):
        for case in cases:
            await _round(host, spec, case, number)
    await host.remove(spec.name)
    return sorted(cases, key=lambda case: case.instance.node_id)


async def _round(host: FunctionHost, spec: FunctionSpec, case: _Case, number: int) -> None:
    await dedup(host, case.instance)
    case.first_ms.append((await ask(host, case.instance, spec.seeded_event(TEST_SEED + number)))[1])
    case.reports.append(await complete(host, case.instance))
    answer, _ = await ask(host, case.instance, spec.event)
    if spec.idempotent and answer != case.expected:
        raise CorruptError("answered otherwise after a restore", object=case.instance.instance_id)


def _figures(case: _Case) -> dict[str, Any]:
    warm_ms = quantile_or_none(case.warm_ms, 0.5) or 0.0
    added_ms = [round(ms - warm_ms, 3) for ms in case.first_ms]
    settled = case.reports[SETTLED:]

    def p50(values: list[float]) -> float | None:
        return quantile_or_none(values, 0.5)

    return {
        "n": len(case.first_ms),
        "warm_ms_p50": warm_ms,
        "added_ms": added_ms,
        "added_ms_settled_p50": p50(added_ms[SETTLED:]),
        "added_ms_settled_p99": quantile_or_none(added_ms[SETTLED:], 0.99),
        "ready_ms_p50": p50([r.ready_us / 1000 for r in settled]),
        "complete_ms_p50": p50([r.complete_us / 1000 for r in settled]),
        "fetch_ms_p50": p50([r.stage_us.get("fetch", 0) / 1000 for r in settled]),
        "apply_ms_p50": p50([r.stage_us.get("apply", 0) / 1000 for r in settled]),
        "place_ms_p50": p50([r.stage_us.get("place", 0) / 1000 for r in settled]),
        "pages_prefetched": int(p50([r.pages_prefetched for r in settled]) or 0),
        "faults_demand": int(p50([r.faults_demand for r in settled]) or 0),
        "pages_read_remotely": [sum(r.pages_by_transport.values()) for r in case.reports],
    }
