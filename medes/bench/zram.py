"""Baseline of the restore benchmark: an instance's memory is pushed out to compressed swap on zram."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medes import native
from medes.bench.baselines import STEP_TIMEOUT_S, WARM_REQUESTS, Skipped
from medes.quantiles import quantile, quantile_or_none
from medes.runtimes.host.standalone import running_instances
from medes.runtimes.manifest import FunctionSpec

MADV_PAGEOUT = 21
SYS_PROCESS_MADVISE = 440
IOVEC_MAX = 1024
CONTROL = Path("/sys/class/zram-control")
COMPRESSORS = ("zstd", "lz4", "lzo-rle", "lzo")  # best ratio first
SIZE_BYTES = 2 << 30


def active_device() -> str:
    """The zram device that is swapped to. Raises Skipped."""
    for name in _swap_areas():
        if name.startswith("zram"):
            return name
    raise Skipped("no swap on zram is active here; --set-up-zram makes one for the benchmark (as root)")


def _swap_areas() -> list[str]:
    return [Path(line.split()[0]).name for line in Path("/proc/swaps").read_text().splitlines()[1:]]


@contextlib.contextmanager
def temporary_swap(size_bytes: int = SIZE_BYTES) -> Iterator[str]:
    """While it lasts the machine swaps to a zram device of its own, with the best compressor the kernel has.

    The whole machine may swap there: for benchmarks only. Raises Skipped where a device cannot be made, or where
    other swap is active, since pages would then go to either.
    """
    if others := _swap_areas():
        raise Skipped(f"swap is active already ({', '.join(others)}); swapoff first")
    try:
        number = int((CONTROL / "hot_add").read_text())
    except (OSError, ValueError) as error:
        raise Skipped(f"no zram device can be made: {error}") from None
    device, settings = f"zram{number}", Path(f"/sys/block/zram{number}")
    try:
        offered = (settings / "comp_algorithm").read_text().replace("[", "").replace("]", "").split()
        (settings / "comp_algorithm").write_text(next(name for name in COMPRESSORS if name in offered))
        (settings / "disksize").write_text(str(size_bytes))
        node = _device_node(device)
        _command("mkswap", node)
        _command("swapon", node)
        try:
            yield device
        finally:
            _command("swapoff", node)
    except (OSError, StopIteration) as error:
        raise Skipped(f"{device} cannot be set up: {error}") from None
    finally:
        with contextlib.suppress(OSError):
            (CONTROL / "hot_remove").write_text(str(number))


def _device_node(device: str) -> str:
    """/dev/<device>, made where nothing (udev, devtmpfs) makes it."""
    node = Path("/dev") / device
    if not node.exists():
        major, _, minor = Path(f"/sys/block/{device}/dev").read_text().strip().partition(":")
        os.mknod(node, 0o600 | stat.S_IFBLK, os.makedev(int(major), int(minor)))
    return str(node)


def _command(name: str, node: str) -> None:
    program = shutil.which(name) or f"/usr/sbin/{name}"
    done = subprocess.run([program, node], capture_output=True, text=True, timeout=STEP_TIMEOUT_S)
    if done.returncode != 0:
        raise Skipped(f"{name} {node}: {done.stderr.strip()}")


def measure(spec: FunctionSpec, rounds: int, set_up: bool = False) -> dict[str, Any]:
    """Pushes one warm instance's private anonymous memory out with MADV_PAGEOUT; first response: the next answer.
    set_up: to a zram device made for it, else to the one that is swapped to. Raises Skipped."""
    with temporary_swap() if set_up else contextlib.nullcontext(active_device()) as device:
        return _measure(spec, rounds, device)


def _measure(spec: FunctionSpec, rounds: int, device: str) -> dict[str, Any]:
    first_ms, kept = [], []
    with running_instances(spec, 1, seed=3, warm_requests=WARM_REQUESTS) as (instance,):
        expected = instance.invoke()
        # Once, not each round: a page that came back and was not written keeps its place in the device.
        before = device_bytes(device)
        for _ in range(rounds):
            pids = native.process_tree([instance.pid])
            for pid in pids:
                page_out(pid)
            kept.append(max(0, device_bytes(device) - before) + sum(map(_anonymous_bytes, pids)))
            begun = time.perf_counter()
            answer = instance.invoke()
            first_ms.append((time.perf_counter() - begun) * 1000)
            if spec.idempotent and answer != expected:
                raise Skipped("the function answered otherwise after its pages came back")
    compressor = Path(f"/sys/block/{device}/comp_algorithm").read_text()
    return {
        "first_response_ms_p50": quantile_or_none(first_ms, 0.5),
        "kept_bytes": quantile(kept, 0.5),
        "compressor": compressor.partition("[")[2].partition("]")[0],
    }


def _anonymous_bytes(pid: int) -> int:
    """Resident anonymous memory: what Medes counts too. Page cache that only this process maps is left out."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(rollup.partition("Anonymous:")[2].split()[0]) * 1024


def device_bytes(device: str) -> int:
    """Memory the device uses for what it holds."""
    return int(Path(f"/sys/block/{device}/mm_stat").read_text().split()[2])


def page_out(pid: int) -> None:
    """Pushes a process's private anonymous memory out to swap, with MADV_PAGEOUT. Raises Skipped."""
    ranges = []
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        is_anonymous = len(fields) < 6 or fields[5] in ("[heap]", "[stack]") or fields[5].startswith("[anon")
        if is_anonymous and fields[1].startswith("rw-p"):
            begin, end = (int(text, 16) for text in fields[0].split("-"))
            ranges.append((begin, end - begin))
    libc = ctypes.CDLL(None, use_errno=True)
    pidfd = os.pidfd_open(pid)
    try:
        for at in range(0, len(ranges), IOVEC_MAX):
            part = ranges[at : at + IOVEC_MAX]
            vector = (ctypes.c_size_t * (2 * len(part)))(*(number for pair in part for number in pair))
            arguments = (pidfd, vector, ctypes.c_size_t(len(part)), MADV_PAGEOUT, 0)
            if libc.syscall(SYS_PROCESS_MADVISE, *arguments) < 0:
                raise Skipped(f"process_madvise: {os.strerror(ctypes.get_errno())}")
    finally:
        os.close(pidfd)
