"""Where a CRIU lies that can run here; `medes doctor` and the restore benchmark look at the same places."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

CRIU_VERSION_MIN = (4, 2)  # Debian 12's 3.17 fails on kernels with the newer vDSO layout
BUILT = Path(__file__).resolve().parents[2] / "build/criu/criu"  # of deploy/build-criu.sh
FIX = "bash deploy/build-criu.sh builds one; MEDES_CRIU names one elsewhere"
VERSION_TIMEOUT_S = 10.0


def find_criu() -> tuple[str | None, str]:
    """(path, its version), or (None, why there is none): MEDES_CRIU, build/criu/criu of the source tree, then PATH."""
    too_old = ""
    for candidate in (os.environ.get("MEDES_CRIU"), str(BUILT), shutil.which("criu"), "/usr/sbin/criu"):
        if not candidate or not os.access(candidate, os.X_OK):
            continue
        version = _version(candidate)
        text = ".".join(map(str, version))
        if version >= CRIU_VERSION_MIN:
            return candidate, text
        too_old = too_old or f"{candidate} is {text or 'none that tells its version'}"
    wanted = ".".join(map(str, CRIU_VERSION_MIN))
    return None, f"no CRIU {wanted} or newer here{', ' if too_old else ''}{too_old}"


def _version(program: str) -> tuple[int, ...]:
    try:
        done = subprocess.run(
            [program, "--version"],
            capture_output=True,
            text=True,
            timeout=VERSION_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    found = re.search(r"Version: (\d+)\.(\d+)", done.stdout)
    return (int(found[1]), int(found[2])) if found else ()
