"""Cleans up after a driver that was killed: `python -m medes.runtimes.host.janitor`, started by JanitorClient.

A process of its own session that reads lines from the driver's pipe. When the pipe closes (the driver ended, for
whatever reason, SIGKILL included) it ends the process groups and removes the folders it was told of. A process
group is only touched while its leader is the process that was named (by start time): a reused number is safe.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

LINE_BYTES_MAX = 64 << 10


def start_time_ticks(pid: int) -> int:
    """Field 22 of /proc/pid/stat; 0 when there is no such process."""
    return int(_stat_fields(pid)[19]) if _stat_fields(pid) else 0


def _stat_fields(pid: int) -> list[str]:
    """/proc/pid/stat from the state on."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


class JanitorClient:
    """The driver's side. Tell it of what must not outlive the driver; close() cleans up at once and waits."""

    def __init__(self) -> None:
        command = [sys.executable, "-P", "-S", "-E", str(Path(__file__))]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True, cwd="/"
        )

    def process(self, pid: int, alive: bool = True) -> None:
        """A process group (by its leader's pid) that is the driver's, or has ended."""
        self._tell({"pid": pid, "start": start_time_ticks(pid)} if alive else {"forget": pid})

    def folder(self, path: Path) -> None:
        """A folder to remove in the end."""
        self._tell({"folder": str(path.resolve())})

    def close(self) -> None:
        """Has everything ended and removed, and waits for it. Idempotent."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        self._process.wait()

    def _tell(self, line: dict[str, object]) -> None:
        if self._process.stdin is None or self._process.stdin.closed:
            return
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(line).encode() + b"\n")
            self._process.stdin.flush()


def end_groups(leaders: dict[int, int]) -> None:
    """Kills the members of the process groups whose leaders have these start times or are gone."""
    groups = {pid for pid, start in leaders.items() if start_time_ticks(pid) in (0, start)}
    for _ in range(50):
        members = [pid for pid in _all_pids() if _group_of(pid) in groups]
        if not members:
            return
        for pid in members:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def _all_pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _group_of(pid: int) -> int:
    fields = _stat_fields(pid)
    return int(fields[2]) if fields and fields[0] not in "ZX" else 0


def main() -> int:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    leaders: dict[int, int] = {}
    folders: list[str] = []
    # readline in bytes: a driver killed in the middle of a line leaves a part that is not JSON.
    while line := sys.stdin.buffer.readline(LINE_BYTES_MAX):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if "pid" in entry and entry["pid"] > 1:
            leaders[int(entry["pid"])] = int(entry["start"])
        elif "forget" in entry:
            leaders.pop(int(entry["forget"]), None)
        elif "folder" in entry:
            folders.append(str(entry["folder"]))
    end_groups(leaders)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
