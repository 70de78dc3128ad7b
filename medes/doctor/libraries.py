"""Optional programs and Python packages."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Iterator

from medes.bench.criu_program import FIX, find_criu
from medes.doctor.check import Check

GROUP = "optional"
VERSION_TIMEOUT_S = 5.0

PROGRAMS: tuple[tuple[str, tuple[str, ...], str, str], ...] = (
    ("runc", ("--version",), "apt-get install runc", "containers in tests"),
    ("crun", ("--version",), "apt-get install crun", "containers in tests"),
    ("qemu-system-x86_64", ("--version",), "apt-get install qemu-system-x86", "the RDMA tests"),
    ("redis-server", ("--version",), "apt-get install redis-server", "tests of the Redis store"),
)
PACKAGES: tuple[tuple[str, str, str], ...] = (
    ("redis", "pip install medes[redis]", "a registry in Redis"),
    ("pyxdelta", "pip install medes[bench]", "the paper's scheme in benchmarks"),
    ("numpy", "pip install medes[functions]", "the demo's functions"),
    ("sklearn", "pip install medes[functions]", "the demo's functions"),
)


def probe() -> Iterator[Check]:
    for name, arguments, fix, use in PROGRAMS:
        path = shutil.which(name)
        if path is None:
            yield Check(GROUP, name, False, "not installed", fix, use)
        else:
            yield Check(GROUP, name, True, _version(path, arguments), needed_for=use)
    yield _criu()
    for name, fix, use in PACKAGES:
        found = importlib.util.find_spec(name) is not None
        yield Check(
            GROUP,
            f"python {name}",
            found,
            "installed" if found else "not installed",
            "" if found else fix,
            use,
        )


def _criu() -> Check:
    path, detail = find_criu()
    use = "the comparison with CRIU in medes bench restore"
    if path is None:
        return Check(GROUP, "criu", False, detail, FIX, use)
    return Check(GROUP, "criu", True, f"{path}, version {detail}", needed_for=use)


def _version(path: str, arguments: tuple[str, ...]) -> str:
    try:
        done = subprocess.run(
            [path, *arguments],
            capture_output=True,
            text=True,
            timeout=VERSION_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{path}: {error}"
    lines = (done.stdout or done.stderr).strip().splitlines()
    return lines[0][:100] if lines else path
