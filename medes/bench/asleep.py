"""What programs hold, touch and answer while they sleep dedup'd: unmodified servers, alone and with a probe now and then.

Each program has an agent of its own, so that the agent's CPU time is that of one sleeping sandbox. It is registered,
dedup'd by a call and let be; no request is reported. In the end all of its state is looked at.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from medes import native
from medes.bench.agent import running_agent
from medes.bench.asleep_making import Program, Served, Sizes, started
from medes.bench.asleep_others import OTHERS
from medes.bench.asleep_others import watch as watch_other
from medes.bench.asleep_programs import PROGRAMS
from medes.bench.asleep_sleep import SANDBOX, restored, watch
from medes.bench.asleep_state import timed_ms
from medes.bench.baselines import Skipped
from medes.bench.machine import machine
from medes.client import MedesClient
from medes.errors import InvalidArgumentError, MedesError, UnsupportedError
from medes.quantiles import quantile_or_none

ALONE, PROBED = "alone", "probed"
RUNS = (ALONE, PROBED)
WARM_PROBES, WARM_PROBE_EVERY_S = 20, 0.1
# A program that woke is dedup'd again once it was idle, as on any node; its timers double what they wait.
SETTINGS = {
    "driver": "live",
    "idle_period_s": 10,
    "keep_alive_period_s": 86400,
    "keep_dedup_period_s": 172800,
}


@dataclass(frozen=True)
class Options:
    """`programs`: these, all without names. `against`: these of asleep_others.OTHERS as well, probed. `rounds`: sleeps of `seconds` each of one started program; from the second on
    what it touches asleep is known. `keys` of redis, `items` of each process of the servers with state of their own."""

    programs: tuple[str, ...] = ()
    against: tuple[str, ...] = ()
    seconds: float = 60.0
    probe_every_s: float = 10.0
    rounds: int = 1
    keys: int = 300_000
    items: int = 200_000


def run(
    options: Options,
    progress: Callable[[str], None] = lambda text: None,
    measured: Callable[[str, str], bool] = lambda program, run: False,
) -> Iterator[dict[str, Any]]:
    """Yields a line a program, run and round, or one with `skipped`, why the program cannot run here. A line with
    `failure` is one that is not verified. `measured`: whether a program's run needs no lines.

    Blocks. Raises invalid_argument for an unknown program, unsupported where the live driver cannot run."""
    if unknown := set(options.against) - set(OTHERS):
        raise InvalidArgumentError(
            "no such alternative", object=sorted(unknown)[0], hint="one of " + ", ".join(OTHERS)
        )
    if lacking := native.probe_live():
        what, how = next(iter(lacking.items()))
        raise UnsupportedError(f"no live driver here: {what}", hint=how)
    for program in select(options.programs):
        facts = {"benchmark": "asleep", "program": program.name}
        if why := program.missing():
            yield {**facts, "skipped": why, **machine()}
            continue
        for which in (*RUNS, *options.against):
            if measured(program.name, which):
                continue
            measure = _measure if which in RUNS else _measure_other
            for line in measure(program, which, options, progress):
                yield {**facts, "run": which, **line, **machine()}


def select(names: Sequence[str]) -> list[Program]:
    """The programs of these names, all without names. Raises invalid_argument."""
    if unknown := set(names) - set(PROGRAMS):
        raise InvalidArgumentError(
            "no such program", object=sorted(unknown)[0], hint="one of " + ", ".join(PROGRAMS)
        )
    return [program for name, program in PROGRAMS.items() if not names or name in names]


def _measure(
    program: Program, which: str, options: Options, progress: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    """A line for each round, and none after an error."""
    progress(f"{program.name}, {which}: starting")
    line: dict[str, Any] = {}
    with running_agent(**SETTINGS) as agent, MedesClient(agent.address, timeout_s=60.0) as medes:
        try:
            with started(program, Sizes(options.keys, options.items), agent) as served:
                served.state.verify(served.port)
                warm = _warm_probes(served)
                medes.register(program.name, pids=[served.pid], sandbox_id=SANDBOX)
                for number in range(1, options.rounds + 1):
                    progress(f"{program.name}, {which}: asleep for {options.seconds:g} s, round {number}")
                    line = {"round": number}
                    probe_every_s = options.probe_every_s if which == PROBED else 0.0
                    watched = watch(medes, agent, served, options.seconds, probe_every_s)
                    line |= {**watched.figures(), **warm}
                    if which == ALONE:
                        restored(medes)
                    # Else nobody reports this request either: what it touches has to wake it.
                    served.state.verify(served.port)
                    restored(medes)
                    failure = watched.probe_failures[:1]
                    yield {**line, "verified": not failure, **({"failure": failure[0]} if failure else {})}
                medes.purge(SANDBOX)
        except (MedesError, OSError) as error:
            failed = {"verified": False, "failure": str(error)[:300], "agent_log": agent.log_tail()}
            yield {**line, **failed}


def _measure_other(
    program: Program, which: str, options: Options, progress: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    """A line, of one round: nothing is learnt. The agent knows of no sandbox; it has the folder."""
    other = OTHERS[which]
    progress(f"{program.name}, {which}: for {options.seconds:g} s")
    with running_agent(**SETTINGS) as agent:
        try:
            sizes = Sizes(options.keys, options.items)
            with started(program, sizes, agent, other.launcher) as served:
                served.state.verify(served.port)
                warm = _warm_probes(served)
                yield {
                    "round": 1,
                    **watch_other(other, served, options.seconds, options.probe_every_s),
                    **warm,
                }
        except Skipped as why:
            yield {"skipped": str(why)[:300]}
        except (MedesError, OSError) as error:
            yield {"verified": False, "failure": str(error)[:300]}


def _warm_probes(served: Served) -> dict[str, Any]:
    ms = []
    for _ in range(WARM_PROBES):
        time.sleep(WARM_PROBE_EVERY_S)
        ms.append(timed_ms(served.state, served.port))
    return {
        "probe_warm_ms_p50": quantile_or_none(ms, 0.5),
        "probe_warm_ms_p99": quantile_or_none(ms, 0.99),
    }
