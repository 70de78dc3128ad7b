"""What a request costs its runtime: a begin and an end, as the client sends them (one stream) and as two calls.

The agent is a process of its own with the image driver: no memory is looked at. Both ways take turns, so that a machine
whose speed drifts does not decide between them.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from medes.bench.agent import running_agent
from medes.bench.cpu import cpu_s
from medes.bench.machine import machine
from medes.client import MedesClient
from medes.client.messages import activity_request
from medes.errors import InternalError
from medes.quantiles import quantile
from medes.types import Activity, SandboxState

SANDBOX = "bench"
ROUND_PAIRS = 100
Pair = Callable[[], None]


def run(pairs: int) -> Iterator[dict[str, Any]]:
    """A line each for the stream and for calls, of `pairs` pairs each. Raises io when the agent does not start."""
    with (
        running_agent(driver="image") as agent,
        _process() as pid,
        MedesClient(agent.address) as medes,
    ):
        medes.register("bench", pids=[pid], sandbox_id=SANDBOX)
        yield from _measure(medes, agent.pid, pairs)


def _measure(medes: MedesClient, agent_pid: int, pairs: int) -> Iterator[dict[str, Any]]:
    def stream() -> None:
        begun, ended = medes.begin(SANDBOX), medes.end(SANDBOX)
        if (begun.state, ended.state) != (SandboxState.RUNNING, SandboxState.WARM):
            raise InternalError(f"{begun.state}, then {ended.state}", object=SANDBOX)

    def calls() -> None:
        for activity in (Activity.BEGUN, Activity.ENDED):
            medes.stub.NotifyActivity(activity_request(SANDBOX, activity))

    cases: dict[str, Pair] = {"stream": stream, "calls": calls}
    us: dict[str, list[float]] = {case: [] for case in cases}
    cpu_us = {case: [0.0, 0.0] for case in cases}  # this process's, the agent's
    for pair in cases.values():
        for _ in range(ROUND_PAIRS):
            pair()
    while len(us["calls"]) < pairs:
        for case, pair in cases.items():
            own_s, agents_s = time.process_time(), cpu_s([agent_pid])
            for _ in range(min(ROUND_PAIRS, pairs - len(us[case]))):
                begun_s = time.perf_counter()
                pair()
                us[case].append((time.perf_counter() - begun_s) * 1e6)
            cpu_us[case][0] += (time.process_time() - own_s) * 1e6
            cpu_us[case][1] += (cpu_s([agent_pid]) - agents_s) * 1e6
    for case, samples in us.items():
        yield {
            "bench": "activity",
            "case": case,
            "n": len(samples),
            "us_p50": round(quantile(samples, 0.5), 1),
            "us_p99": round(quantile(samples, 0.99), 1),
            "client_cpu_us": round(cpu_us[case][0] / len(samples), 1),
            "agent_cpu_us": round(cpu_us[case][1] / len(samples), 1),
            **machine(),
        }


@contextmanager
def _process() -> Iterator[int]:
    process = subprocess.Popen(["sleep", "infinity"])
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()
