"""A memory cgroup of one test, as near below the one that the tests run in as can be."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path("/sys/fs/cgroup")


class MemoryCgroup:
    """Processes enter by `add`; all have ended before the group goes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._limit = folder / ("memory.max" if (folder / "memory.max").exists() else "memory.limit_in_bytes")

    def add(self, pid: int) -> None:
        (self.folder / "cgroup.procs").write_text(str(pid))

    def pids(self) -> list[int]:
        return [int(pid) for pid in (self.folder / "cgroup.procs").read_text().split()]

    def limit(self, limit_bytes: int) -> None:
        """Of memory; nothing of the group goes to swap instead, where the machine has any."""
        self._limit.write_text(str(limit_bytes))
        for name, value in (("memory.swap.max", 0), ("memory.memsw.limit_in_bytes", limit_bytes)):
            if (self.folder / name).exists():
                (self.folder / name).write_text(str(value))

    def used_bytes(self) -> int:
        used = self.folder / "memory.current"
        return int((used if used.exists() else self.folder / "memory.usage_in_bytes").read_text())

    def anonymous_bytes(self) -> int:
        """What the kernel charges the group for that is mapped and of no file."""
        stat = dict(line.split() for line in (self.folder / "memory.stat").read_text().splitlines())
        return int(stat["anon"] if "anon" in stat else stat["rss"])  # cgroup v2's name, and v1's


@contextmanager
def memory_cgroup() -> Iterator[MemoryCgroup]:
    """Skips the test where no such group can be made."""
    parent = _parent()
    if parent is None:
        pytest.skip("no memory cgroup above the tests gives its controller on")
    folder = parent / f"medes-test-{secrets.token_hex(6)}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no memory cgroup can be made here: {error}")
    try:
        group = MemoryCgroup(folder)
        if not group._limit.exists():
            pytest.skip(f"{folder.parent} has no memory controller to give on")
        yield group
    finally:
        _remove(folder)


def _parent() -> Path | None:
    """Where groups with a memory controller can be made: with cgroup v1 in any, with v2 where it is given on, and one that
    holds processes itself gives none on unless it is the root."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            return ROOT / "memory" / path.lstrip("/")
        if number == "0":
            own = ROOT / path.lstrip("/")
            for folder in (own, *own.parents):
                given_on = folder / "cgroup.subtree_control"
                if given_on.exists() and "memory" in given_on.read_text().split():
                    return folder
    return None


def memory_cgroup_of(pid: int | str) -> tuple[Path, Path] | None:
    """(directory, file that tells its memory in bytes) of the process's memory cgroup; None without one."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            folder = ROOT / "memory" / path.lstrip("/")
            return folder, folder / "memory.usage_in_bytes"
        unified = ROOT / path.lstrip("/")
        if number == "0" and (unified / "memory.current").exists():
            return unified, unified / "memory.current"
    return None


def _remove(folder: Path) -> None:
    deadline_s = time.monotonic() + 5
    while True:
        try:
            folder.rmdir()
            return
        except OSError:  # its last process is being taken down
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.05)
