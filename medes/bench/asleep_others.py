"""What others do with an idle program, in place of Medes: nothing, merging of equal pages, compressed swap.

Each is given the same program, sleep and probes. All need root; `ksm` and `zram` change settings of the machine while they
last, and put them back.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medes import native
from medes.bench import zram
from medes.bench.asleep_making import Served
from medes.bench.asleep_sleep import SAMPLE_EVERY_S, mean_over_time, probe_figures
from medes.bench.asleep_state import timed_ms
from medes.bench.baselines import Skipped
from medes.bench.cpu import cpu_s
from medes.errors import MedesError

KSM = Path("/sys/kernel/mm/ksm")
# Ten times what the kernel looks at by default, so that a minute is enough for all of it to be seen twice.
KSM_SETTINGS = {"pages_to_scan": "1000", "sleep_millisecs": "20", "use_zero_pages": "1", "run": "1"}
# Of the process and of all that it starts (Linux 6.10: through exec as well).
MERGING = (
    sys.executable,
    "-c",
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(67, 1, 0, 0, 0) and sys.exit('prctl'); os.execvp(sys.argv[1], sys.argv[1:])",
)


@dataclass(frozen=True)
class Applied:
    """`beside_bytes`: what is held for the program outside its processes by now. `cpu_s`: spent on it so far by the kernel's
    own threads."""

    beside_bytes: Callable[[], int] = lambda: 0
    cpu_s: Callable[[], float] = lambda: 0.0


@dataclass(frozen=True)
class Other:
    """`apply` lasts as its block does, and raises Skipped where it cannot be had here. `launcher`: put before the program's
    command."""

    apply: Callable[[Served], AbstractContextManager[Applied]]
    launcher: tuple[str, ...] = ()


@contextlib.contextmanager
def _nothing(served: Served) -> Iterator[Applied]:
    yield Applied()


@contextlib.contextmanager
def _ksm(served: Served) -> Iterator[Applied]:
    before = {name: (KSM / name).read_text() for name in KSM_SETTINGS} if KSM.exists() else {}
    if not before:
        raise Skipped("the kernel has no same-page merging (CONFIG_KSM)")
    threads = [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/comm") if _is(path, "ksmd")]
    try:
        try:
            for name, value in KSM_SETTINGS.items():
                (KSM / name).write_text(value)
        except OSError as error:
            raise Skipped(f"same-page merging cannot be switched on: {error}") from None
        yield Applied(cpu_s=lambda: cpu_s(threads))
    finally:
        for name, value in before.items():
            with contextlib.suppress(OSError):  # what could not be written was not changed
                (KSM / name).write_text(value)


def _is(comm: Path, name: str) -> bool:
    with contextlib.suppress(OSError):  # ended meanwhile
        return comm.read_text().strip() == name
    return False


@contextlib.contextmanager
def _zram(served: Served) -> Iterator[Applied]:
    with zram.temporary_swap() as device:
        before = zram.device_bytes(device)
        for pid in native.process_tree([served.pid]):
            zram.page_out(pid)
        yield Applied(lambda: max(0, zram.device_bytes(device) - before))


OTHERS = {"nothing": Other(_nothing), "ksm": Other(_ksm, MERGING), "zram": Other(_zram)}


@dataclass
class _Sleep:
    """(at_s, bytes) and probes."""

    kept: list[tuple[float, float]] = field(default_factory=list)
    probe_ms: list[float] = field(default_factory=list)
    probe_failures: list[str] = field(default_factory=list)


def watch(other: Other, served: Served, seconds: float, probe_every_s: float) -> dict[str, Any]:
    """Figures of one sleep, probed as nobody reports. Blocks. Raises Skipped, and what the state raises."""
    warm_bytes = held_bytes(served.pid)
    sleep = _Sleep()
    broken: OSError | None = None
    with other.apply(served) as applied:
        cpu_before_s = applied.cpu_s()
        try:
            _probe_and_sample(sleep, applied, served, seconds, probe_every_s)
            cpu_ratio = (applied.cpu_s() - cpu_before_s) / sleep.kept[-1][0]
            served.state.verify(served.port)
        except OSError as error:
            broken = error  # the program's, and not one of what was applied, which would be skipped
    if broken is not None:
        raise broken
    saved = [(at_s, 1 - kept / warm_bytes) for at_s, kept in sleep.kept]
    return {
        "seconds": round(sleep.kept[-1][0], 1),
        "warm_bytes": warm_bytes,
        "kept_bytes": int(sleep.kept[-1][1]),
        "saved_ratio_time_averaged": round(mean_over_time(saved), 4),
        "kernel_cpu_ratio": round(cpu_ratio, 5),
        **probe_figures(sleep.probe_ms, sleep.probe_failures),
        "verified": not sleep.probe_failures,
        **({"failure": sleep.probe_failures[0]} if sleep.probe_failures else {}),
    }


def _probe_and_sample(
    sleep: _Sleep, applied: Applied, served: Served, seconds: float, probe_every_s: float
) -> None:
    begun_s, probe_at_s = time.monotonic(), probe_every_s
    while True:
        now_s = time.monotonic() - begun_s
        sleep.kept.append((now_s, held_bytes(served.pid) + applied.beside_bytes()))
        if now_s >= seconds:
            break
        time.sleep(min(SAMPLE_EVERY_S, seconds - now_s, max(0.0, probe_at_s - now_s)))
        if time.monotonic() - begun_s >= probe_at_s:
            try:
                sleep.probe_ms.append(timed_ms(served.state, served.port))
            except (OSError, MedesError) as error:
                sleep.probe_failures.append(str(error)[:200])
            probe_at_s += probe_every_s


def held_bytes(root: int) -> int:
    """Resident memory of a tree of processes that is no file's page cache, pages that several share once. A page that came
    back from swap counts, also while it is clean."""
    total = 0
    for pid in native.process_tree([root]):
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        for key in ("Pss_Anon:", "Pss_Shmem:"):
            total += int(rollup.partition(key)[2].split()[0]) * 1024
    return total
