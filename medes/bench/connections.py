"""Connections that are held open through many cycles of dedup and use.

A cycle: the program is dedup'd, used over its connection while it sleeps, which nobody reports, then restored and used
again. Every second restore is not waited for before that. The program counts what comes over the connection, and the
counts are compared; in the end its whole state is.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from medes import native
from medes.bench.agent import running_agent
from medes.bench.asleep_making import Sizes, started
from medes.bench.asleep_sleep import SANDBOX, restored
from medes.bench.machine import machine
from medes.bench.programs.held import HELD, Connection, Held
from medes.client import MedesClient
from medes.errors import BusyError, InvalidArgumentError, MedesError, UnsupportedError
from medes.quantiles import quantile_or_none
from medes.types import DedupReport

BUSY_MAX, BUSY_WAIT_S = 50, 0.1
# Its own timers are to leave it alone: the next cycle dedups it.
SETTINGS = {
    "driver": "live",
    "idle_period_s": 3600,
    "keep_alive_period_s": 86400,
    "keep_dedup_period_s": 172800,
}


@dataclass(frozen=True)
class Options:
    """`programs`: these, all without names. `keys` of redis, `items` of the others."""

    programs: tuple[str, ...] = ()
    cycles: int = 1000
    keys: int = 50_000
    items: int = 50_000


@dataclass
class _Cycles:
    """What was seen of one program's cycles so far."""

    done: int = 0
    woken: int = 0  # restored by what a use touched, or by a fork
    busy: int = 0  # ops that were to be asked for again
    kept_ratio: list[float] = field(default_factory=list)
    dedup_ms: list[float] = field(default_factory=list)
    asleep_ms: list[float] = field(default_factory=list)
    awake_ms: list[float] = field(default_factory=list)

    def figures(self) -> dict[str, Any]:
        return {
            "cycles": self.done,
            "woken": self.woken,
            "busy": self.busy,
            "kept_ratio_p50": quantile_or_none(self.kept_ratio, 0.5),
            "dedup_ms_p50": quantile_or_none(self.dedup_ms, 0.5),
            "use_asleep_ms_p50": quantile_or_none(self.asleep_ms, 0.5),
            "use_asleep_ms_p99": quantile_or_none(self.asleep_ms, 0.99),
            "use_awake_ms_p50": quantile_or_none(self.awake_ms, 0.5),
            "use_awake_ms_p99": quantile_or_none(self.awake_ms, 0.99),
        }


def run(options: Options, progress: Callable[[str], None] = lambda text: None) -> Iterator[dict[str, Any]]:
    """Yields a line a program, or one with `skipped`, why it cannot run here. A line with `failure` is one of a connection
    or a state that did not hold.

    Blocks. Raises invalid_argument for an unknown program, unsupported where the live driver cannot run."""
    if lacking := native.probe_live():
        what, how = next(iter(lacking.items()))
        raise UnsupportedError(f"no live driver here: {what}", hint=how)
    for held in _select(options.programs):
        facts = {"benchmark": "connections", "program": held.name}
        if why := held.program.missing():
            yield {**facts, "skipped": why, **machine()}
            continue
        progress(f"{held.name}: {options.cycles} cycles")
        yield {**facts, **_measure(held, options), **machine()}


def _select(names: Sequence[str]) -> list[Held]:
    if unknown := set(names) - set(HELD):
        raise InvalidArgumentError(
            "no such program", object=sorted(unknown)[0], hint="one of " + ", ".join(HELD)
        )
    return [held for name, held in HELD.items() if not names or name in names]


def _measure(held: Held, options: Options) -> dict[str, Any]:
    cycles = _Cycles()
    sizes = Sizes(options.keys, options.items)
    with running_agent(**SETTINGS) as agent, MedesClient(agent.address, timeout_s=60.0) as medes:
        try:
            with (
                started(held.program, sizes, agent) as served,
                contextlib.closing(held.connect(served)) as connection,
            ):
                connection.use()
                medes.register(held.name, pids=[served.pid], sandbox_id=SANDBOX)
                for number in range(options.cycles):
                    _cycle(medes, connection, cycles, wait=number % 2 == 0)
                served.state.verify(served.port)
                medes.purge(SANDBOX)
        except (MedesError, OSError) as error:
            failed = {"verified": False, "failure": str(error)[:300], "agent_log": agent.log_tail()}
            return {**cycles.figures(), **failed}
    return {**cycles.figures(), "verified": True}


def _cycle(medes: MedesClient, connection: Connection, cycles: _Cycles, wait: bool) -> None:
    begun_s = time.perf_counter()
    report = _dedup(medes, cycles)
    cycles.dedup_ms.append((time.perf_counter() - begun_s) * 1000)
    kept_bytes = report.patch_bytes + report.table_bytes + report.resident_bytes
    cycles.kept_ratio.append(kept_bytes / report.warm_bytes)
    cycles.asleep_ms.append(_timed_ms(connection))
    if wait:
        restored(medes)
    else:
        medes.restore(SANDBOX)
    cycles.awake_ms.append(_timed_ms(connection))
    restored(medes)
    last = medes.get(SANDBOX).last_restore
    cycles.woken += last is not None and last.demand_woken
    cycles.done += 1


def _dedup(medes: MedesClient, cycles: _Cycles) -> DedupReport:
    """A program may start or end a process meanwhile, and then the op is to be asked for again. Raises busy after many."""
    for _ in range(BUSY_MAX):
        try:
            return medes.dedup(SANDBOX).report
        except BusyError:
            cycles.busy += 1
            time.sleep(BUSY_WAIT_S)
    return medes.dedup(SANDBOX).report


def _timed_ms(connection: Connection) -> float:
    begun_s = time.perf_counter()
    connection.use()
    return (time.perf_counter() - begun_s) * 1000
