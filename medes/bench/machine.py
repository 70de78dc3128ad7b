"""Where a measurement was taken: goes into every line a benchmark prints, and ahead of what an evaluation case measures."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from pathlib import Path

import medes
from medes.agent.node.pressure import machine_bytes


def machine() -> dict[str, object]:
    """medes (its version), commit (empty outside a git clone), cpu, cpus, kernel, memory_bytes, python; and load_average,
    that of the last minute as it is now."""
    return {**_machine(), "load_average": round(os.getloadavg()[0], 2)}


@functools.cache
def _machine() -> dict[str, object]:
    cpu = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return {
        "medes": medes.__version__,
        "commit": _commit(),
        "cpu": cpu,
        "cpus": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "memory_bytes": machine_bytes(),
        "python": platform.python_version(),
    }


def _commit() -> str:
    folder = Path(medes.__file__).parent.parent
    if not (folder / ".git").exists():
        return ""  # installed; a repository further up, if there is one, is somebody else's
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            timeout=10,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()
