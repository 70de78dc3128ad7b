"""One sleep of a program that the asleep benchmark watches: samples of what its agent says, probes, and sums over time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from medes import native
from medes.bench.agent import RunningAgent
from medes.bench.asleep_making import Served
from medes.bench.asleep_state import timed_ms
from medes.bench.cpu import cpu_s
from medes.client import MedesClient
from medes.errors import DeadlineExceededError, LostError, MedesError
from medes.quantiles import quantile_or_none
from medes.types import DedupReport, Sandbox, SandboxState

SANDBOX = "bench"
SAMPLE_EVERY_S = 2.0
FIRST_S = 60.0  # in which a program touches what its ticks need
PROBES_LEARNING = 3  # what an answer needs comes with the first probes
WHOLE_TIMEOUT_S = 60.0
POLL_S = 0.05


@dataclass(frozen=True)
class Sample:
    """What the agent said of it `at_s` after the dedup op, and the kernel: see dirty_bytes."""

    at_s: float
    sandbox: Sandbox
    dirty_bytes: int

    @property
    def asleep(self) -> bool:
        return self.sandbox.state is SandboxState.DEDUP

    @property
    def kept_bytes(self) -> int:
        """Of a sandbox that is asleep: patches, tables and what is resident."""
        dedup = self.sandbox.last_dedup or DedupReport()
        return dedup.patch_bytes + dedup.table_bytes + self.dirty_bytes


@dataclass
class Watched:
    """A sleep as it was seen. `warm_bytes`: see dirty_bytes, by the time of the op."""

    warm_bytes: int
    report: DedupReport
    samples: list[Sample] = field(default_factory=list)
    probe_ms: list[float] = field(default_factory=list)
    probe_failures: list[str] = field(default_factory=list)
    agent_cpu_s: float = 0.0

    @property
    def seconds(self) -> float:
        return self.samples[-1].at_s

    def figures(self) -> dict[str, Any]:
        """For the benchmark's line. A ratio over time counts a sample until the next one."""
        end = self.samples[-1]
        last = end.sandbox
        touched = self._touched_pages()
        first = sum(pages for at_s, pages in touched if at_s <= FIRST_S)
        rest_s = self.seconds - FIRST_S
        return {
            "seconds": round(self.seconds, 1),
            "warm_bytes": self.warm_bytes,
            "agent_warm_bytes": self.report.warm_bytes,
            "kept_bytes": end.kept_bytes if end.asleep else self.warm_bytes,
            "agent_kept_bytes": last.kept_bytes,
            "touched_bytes": last.touched_bytes,
            "saved_ratio_time_averaged": round(self._over_time(self._saved_ratio), 4),
            "base_share_bytes": last.base_share_bytes or 0,
            "asleep_ratio": round(self._over_time(lambda sample: float(sample.asleep)), 4),
            "wakes": last.restore_count - self.samples[0].sandbox.restore_count,
            "faults_first_minute": first,
            "faults_per_hour_after": (
                round((sum(pages for _, pages in touched) - first) * 3600 / rest_s, 1)
                if rest_s >= 1
                else None
            ),
            "last_fault_s": max((round(at_s, 1) for at_s, _ in touched), default=None),
            "agent_cpu_ratio": round(self.agent_cpu_s / self.seconds, 5),
            "dedup_ms": round(self.report.total_us / 1000, 1),
            "stopped_ms": round(self.report.stopped_us / 1000, 1),
            **probe_figures(self.probe_ms, self.probe_failures),
        }

    def probe(self, served: Served) -> None:
        """Asks once. What fails is kept, and no figure."""
        try:
            self.probe_ms.append(timed_ms(served.state, served.port))
        except (OSError, MedesError) as error:
            self.probe_failures.append(str(error)[:200])

    def _saved_ratio(self, sample: Sample) -> float:
        kept_bytes = sample.kept_bytes if sample.asleep else self.warm_bytes
        return (self.warm_bytes - kept_bytes) / self.warm_bytes

    def _over_time(self, of: Callable[[Sample], float]) -> float:
        return mean_over_time([(sample.at_s, of(sample)) for sample in self.samples])

    def _touched_pages(self) -> list[tuple[float, int]]:
        """(when it was seen, pages) that came one by one while it slept."""
        found = []
        before = 0
        for sample in self.samples:
            pages = sample.sandbox.touched_bytes // native.PAGE_BYTES
            if pages > before:
                found.append((sample.at_s, pages - before))
            before = pages
        return found


def probe_figures(ms: Sequence[float], failures: Sequence[str]) -> dict[str, Any]:
    """Of the probes of one sleep. Those that fetch what an answer needs are in none of its quantiles."""
    settled_ms = ms[PROBES_LEARNING:]
    return {
        "probes": len(ms) + len(failures),
        "probes_failed": len(failures),
        "probe_first_ms": round(ms[0], 3) if ms else None,
        "probe_ms_p50": quantile_or_none(settled_ms, 0.5),
        "probe_ms_p99": quantile_or_none(settled_ms, 0.99),
    }


def mean_over_time(samples: Sequence[tuple[float, float]]) -> float:
    """Of (at_s, value), where a value holds until the next one."""
    total = sum(value * (after_s - at_s) for (at_s, value), (after_s, _) in pairwise(samples))
    return total / samples[-1][0]


def watch(
    medes: MedesClient, agent: RunningAgent, served: Served, seconds: float, probe_every_s: float
) -> Watched:
    """Dedups the sandbox and lets it be for `seconds`; probe_every_s 0: nobody asks. Blocks. Raises what Dedup and Get
    raise, and lost."""
    warm_bytes = dirty_bytes(served.pid)
    watched = Watched(warm_bytes, medes.dedup(SANDBOX).report)
    cpu_before_s, begun_s = cpu_s([agent.pid]), time.monotonic()
    probe_at_s = probe_every_s or seconds
    while True:
        now_s = time.monotonic() - begun_s
        watched.samples.append(Sample(now_s, _get(medes), dirty_bytes(served.pid)))
        if now_s >= seconds:
            break
        wait_s = min(SAMPLE_EVERY_S, seconds - now_s, max(0.0, probe_at_s - now_s))
        time.sleep(wait_s)
        if probe_every_s and time.monotonic() - begun_s >= probe_at_s:
            watched.probe(served)
            probe_at_s += probe_every_s
    watched.agent_cpu_s = cpu_s([agent.pid]) - cpu_before_s
    return watched


def restored(medes: MedesClient) -> None:
    """Brings all of it back, and waits for the last page. Raises what Restore raises, lost, deadline_exceeded."""
    medes.restore(SANDBOX, eager=True)
    deadline_s = time.monotonic() + WHOLE_TIMEOUT_S
    while _get(medes).state not in (SandboxState.WARM, SandboxState.RUNNING):
        if time.monotonic() > deadline_s:
            raise DeadlineExceededError(f"not whole after {WHOLE_TIMEOUT_S:g} s", object=SANDBOX)
        time.sleep(POLL_S)


def dirty_bytes(root: int) -> int:
    """Resident memory that a tree of processes has written, pages that several of them share once: page cache of mapped
    files, which the kernel can drop and read again, is not in it."""
    total = 0
    for pid in native.process_tree([root]):
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        total += int(rollup.partition("Pss_Dirty:")[2].split()[0]) * 1024
    return total


def _get(medes: MedesClient) -> Sandbox:
    sandbox = medes.get(SANDBOX)
    if sandbox.state is SandboxState.LOST:
        raise LostError(sandbox.lost_reason, object=SANDBOX)
    return sandbox
