"""Processes by (pid, start time): a pid alone may by now be somebody else's process."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from medes import native
from medes.errors import MedesError, PermissionDeniedError


def is_zombie(pid: int) -> bool:
    """Exited and not yet reaped: nothing of its memory is left. False also when it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return False
    return text[text.rfind(")") + 2 :][:1] in ("Z", "X")


def start_time(pid: int) -> int:
    """Start time in clock ticks, 0 when there is no such (running) process."""
    try:
        ticks = native.process_start_time(pid)
    except MedesError:
        return 0
    return 0 if is_zombie(pid) else ticks


def runs(pid: int, start_time_ticks: int) -> bool:
    """Whether the process that had this start time still runs."""
    return start_time_ticks != 0 and start_time(pid) == start_time_ticks


def kill(pid: int, start_time_ticks: int) -> None:
    """SIGKILL to that very process; silently nothing when it is gone. Raises permission_denied."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    except OSError as error:
        raise PermissionDeniedError(str(error), object=f"pid {pid}") from error
    try:
        # The descriptor holds on to whatever process has the pid now; only then is its identity checked.
        if runs(pid, start_time_ticks):
            signal.pidfd_send_signal(fd, signal.SIGKILL)
    except ProcessLookupError:
        return
    except PermissionError as error:
        raise PermissionDeniedError(str(error), object=f"pid {pid}") from error
    finally:
        os.close(fd)


def kill_all(pids: list[int]) -> None:
    """Kills processes, children first, so that none of them sees its parent go and is adopted elsewhere."""
    times = {pid: start_time(pid) for pid in pids}
    for pid in reversed(pids):
        kill(pid, times[pid])
