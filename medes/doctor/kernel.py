"""Other kernel features: cgroups, KSM, huge pages, pressure."""

from __future__ import annotations

import errno
import fcntl
import struct
from collections.abc import Iterator
from pathlib import Path

from medes import meminfo
from medes.doctor import syscalls
from medes.doctor.check import Check

GROUP = "kernel"
_PR_GET_MEMORY_MERGE = 68


def _text(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def probe() -> Iterator[Check]:
    yield from _cgroups()
    yield _ksm()
    huge = _text("/sys/kernel/mm/transparent_hugepage/enabled")
    yield Check(
        GROUP,
        "transparent huge pages",
        True,
        f"{huge or 'not in this kernel'} (what was huge comes back in 4 KiB pages and is joined again)",
    )
    yield Check(GROUP, "huge pages", True, f"{meminfo.read().get('HugePages_Total', 0)} reserved")
    pressure = _text("/proc/pressure/memory")
    yield Check(
        GROUP,
        "pressure stall information",
        pressure is not None,
        (pressure or "absent").splitlines()[0],
        "" if pressure else "boot with psi=1; thresholds of free memory serve instead",
    )
    scan = _has_pagemap_scan()
    yield Check(
        GROUP,
        "PAGEMAP_SCAN",
        scan,
        "reads page maps"
        if scan
        else "absent: page maps are read entry by entry, and huge pages are not joined again",
        "" if scan else "Linux 6.7 or newer",
    )


def _cgroups() -> Iterator[Check]:
    mounts = [line.split() for line in (_text("/proc/self/mounts") or "").splitlines()]
    v2 = [fields[1] for fields in mounts if fields[2] == "cgroup2"]
    v1 = {option for fields in mounts if fields[2] == "cgroup" for option in fields[3].split(",")}
    kind = "hybrid v1 + v2" if v1 and v2 else "v2" if v2 else "v1" if v1 else "none"
    yield Check(
        GROUP,
        "cgroups",
        bool(v1 or v2),
        kind,
        "" if v1 or v2 else "mount cgroup2",
        "sandboxes given by cgroup",
    )
    controllers = _text(f"{v2[0]}/cgroup.controllers") if v2 else None
    if v2 and "memory" in (controllers or "").split():
        memory = "v2"
    else:
        memory = "v1" if "memory" in v1 else "none"
    yield Check(GROUP, "memory controller", memory != "none", memory)
    freezer = "v2 (cgroup.freeze)" if v2 else "v1" if "freezer" in v1 else "none"
    yield Check(
        GROUP,
        "freezer",
        bool(v2),
        freezer,
        "" if v2 else "mount cgroup2: a frozen v1 cgroup delivers no ptrace stop",
    )


def _ksm() -> Check:
    run = _text("/sys/kernel/mm/ksm/run")
    if run is None:
        return Check(GROUP, "KSM", False, "not in this kernel", "only the comparison benchmark uses it")
    try:
        per_process = f", per process {'on' if syscalls.prctl(_PR_GET_MEMORY_MERGE) else 'off'}"
    except OSError:
        per_process = ", no per-process switch (Linux 6.4)"
    return Check(GROUP, "KSM", True, f"run = {run}{per_process}")


def _has_pagemap_scan() -> bool:
    """Asks for a scan of no length: the ioctl is there unless the kernel says ENOTTY."""

    arguments = bytearray(struct.pack("<12Q", 96, *([0] * 11)))
    with Path("/proc/self/pagemap").open("rb", buffering=0) as pagemap:
        try:
            fcntl.ioctl(pagemap, 0xC0606610, arguments)
        except OSError as error:
            return error.errno != errno.ENOTTY
    return True
