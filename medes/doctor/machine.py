"""Kernel, CPU, memory and the native core."""

from __future__ import annotations

import os
import platform
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

from medes import meminfo
from medes.doctor.check import Check
from medes.errors import MedesError

GROUP = "machine"
LIVE_DRIVER = "live driver"  # the check that asks the driver itself; the verdict
# pidfd_getfd is the youngest call that the live driver cannot do without.
KERNEL_MINIMUM = (5, 6)


def _cpu_flags() -> set[str]:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("flags", "Features")):
            return set(line.split(":", 1)[1].split())
    return set()


def probe() -> Iterator[Check]:
    release = platform.release()
    numbers = tuple(int(x) for x in release.split("-")[0].split(".")[:2] if x.isdigit())
    new_enough = numbers >= KERNEL_MINIMUM
    yield Check(
        GROUP,
        "kernel",
        new_enough,
        f"Linux {release}",
        "" if new_enough else "Linux 5.6 or newer (6.7 for everything)",
        "the live driver",
    )
    machine = platform.machine()
    yield Check(
        GROUP,
        "architecture",
        machine == "x86_64",
        machine,
        ""
        if machine == "x86_64"
        else "the live driver injects x86-64 system calls; captured images work here",
        "the live driver",
    )
    cpus = len(os.sched_getaffinity(0))
    memory = meminfo.read()
    total, free = (memory.get(name, 0) >> 20 for name in ("MemTotal", "MemAvailable"))
    yield Check(GROUP, "memory", True, f"{total} MiB, {free} free")
    yield Check(GROUP, "processors", True, str(cpus))
    yield from _native(_cpu_flags())
    yield from _shared_memory()


def _native(flags: set[str]) -> Iterator[Check]:
    try:
        from medes import native
    except ImportError as error:
        yield Check(GROUP, "native core", False, str(error), "make build", "everything")
        return
    yield Check(GROUP, "native core", True, "loads", needed_for="everything")
    cpu = [name for name in ("avx2", "avx512bw") if name in flags]
    try:
        levels = native.simd_levels()
        yield Check(
            GROUP,
            "SIMD levels",
            True,
            f"{', '.join(levels)} (the CPU has {', '.join(cpu) or 'neither AVX2 nor AVX-512'})",
        )
        missing = native.probe_live()
    except (AttributeError, MedesError) as error:
        yield Check(GROUP, LIVE_DRIVER, False, str(error), "make build", "dedup of running processes")
        return
    if not missing:
        yield Check(GROUP, LIVE_DRIVER, True, "can run", needed_for="dedup of running processes")
    for what, fix in missing.items():
        yield Check(GROUP, LIVE_DRIVER, False, what, fix, "dedup of running processes")


def _shared_memory() -> Iterator[Check]:
    folder = Path("/dev/shm")
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        yield Check(
            GROUP, "/dev/shm", False, "not writable", "mount a tmpfs there, or set shm_dir", "the stores"
        )
    else:
        free = shutil.disk_usage(folder).free >> 20
        roomy = free >= 1024
        yield Check(
            GROUP,
            "/dev/shm",
            roomy,
            f"{free} MiB free",
            "" if roomy else "mount it larger: size=50%",
            "the stores",
        )
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    limit = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft >> 10} KiB"
    yield Check(GROUP, "locked memory limit", True, f"{limit} (RDMA registration counts against it)")
