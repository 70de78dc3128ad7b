"""What an operator can do today with an idle sandbox, beside Medes: see criu.py and zram.py.

Each baseline either measures, checking the function's answers as the restore benchmark does, or says why it cannot.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

from medes.errors import MedesError
from medes.runtimes.instance import wire

STEP_TIMEOUT_S = 60.0
WARM_REQUESTS = 4


class Skipped(Exception):
    """Why a baseline cannot run here."""


def run(name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A baseline's figures, their names prefixed with its name, or `<name>_skipped` with the reason."""
    try:
        figures = measure()
    except (Skipped, MedesError, OSError, subprocess.SubprocessError, wire.FrameError) as error:
        return {f"{name}_skipped": str(error)[:300]}
    return {f"{name}_{key}": value for key, value in figures.items()}
