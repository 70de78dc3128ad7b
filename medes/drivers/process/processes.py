"""Processes by (pid, start time): a pid alone may by now be somebody else's process."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable
from pathlib import Path

from medes import native
from medes.errors import (
    InvalidArgumentError,
    MedesError,
    NotFoundError,
    PermissionDeniedError,
)

_SIGKILL_BIT = 1 << (signal.SIGKILL - 1)


def is_ending(pid: int) -> bool:
    """Whether the process got a SIGKILL and is on its way out, or is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return True
    except OSError:
        return False
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    pending = int(fields.get("SigPnd", "0"), 16) | int(fields.get("ShdPnd", "0"), 16)
    return bool(pending & _SIGKILL_BIT) or not native.is_alive(pid)


def start_time(pid: int) -> int:
    """Start time in clock ticks, 0 when there is no such (running) process. Raises why that cannot be told now."""
    try:
        return native.living_start_time(pid)
    except NotFoundError:
        return 0


def runs(pid: int, start_time_ticks: int) -> bool:
    """Whether the process that had this start time still runs. One that cannot be looked at now (no descriptor left, no
    right) counts as running as long as there is one of that pid."""
    try:
        return start_time_ticks != 0 and start_time(pid) == start_time_ticks
    except MedesError:
        return _exists(pid)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def namespace() -> str:
    """Names what process ids mean here: this boot's PID namespace. Empty when that cannot be told."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return ""


def is_guarded(pid: int) -> bool:
    """Whether a userfaultfd guards mappings of the process, as while pages are out. Raises what keeps it from being read."""
    try:
        with Path(f"/proc/{pid}/smaps").open(errors="replace") as file:
            return any(line.startswith("VmFlags:") and "um" in line.split()[1:] for line in file)
    except (FileNotFoundError, ProcessLookupError):
        return False


KEEPER_NAME = "medes-keeper"  # native/serving/keeper.cc
PF_KTHREAD = 0x0020_0000  # include/linux/sched.h


def refuse_own(pids: Iterable[int]) -> None:
    """Raises invalid_argument when one of these processes cannot be a sandbox: the agent and whoever started it (its
    tree has the agent in it), a keeper, init, a kernel thread, a thread of a process. Those that are gone may be."""
    agent_and_ancestors = ancestors(os.getpid())
    for pid in pids:
        why = _why_not(pid, agent_and_ancestors)
        if why:
            raise InvalidArgumentError(f"{why}: it cannot be a sandbox", object=f"pid {pid}")


def ancestors(pid: int) -> list[int]:
    """The process and those it descends from, as far as this PID namespace shows them."""
    found: list[int] = []
    while pid > 0 and pid not in found:
        found.append(pid)
        fields = _stat(pid)
        pid = int(fields[1]) if fields else 0
    return found


def _why_not(pid: int, agent_and_ancestors: list[int]) -> str:
    if pid == os.getpid():
        return "this is the agent itself"
    if pid == 1:
        return "this is init"
    if pid in agent_and_ancestors:
        return "this is an ancestor of the agent"
    try:
        status = Path(f"/proc/{pid}/status").read_text(errors="replace")
    except OSError:
        return ""
    facts = dict(line.partition(":\t")[::2] for line in status.splitlines())
    if facts.get("Name") == KEEPER_NAME:
        return "this is an agent's keeper"
    if facts.get("Tgid", str(pid)).strip() != str(pid):
        return f"this is a thread of process {facts['Tgid'].strip()}"
    fields = _stat(pid)
    if fields and int(fields[6]) & PF_KTHREAD:
        return "this is a kernel thread"
    return ""


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name: state, parent, …; none when it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return []
    return text[text.rfind(")") + 2 :].split()


def cpu_s(pid: int) -> float:
    """Processor time that its threads have used; 0 for one that has ended."""
    ticks = sum(map(int, _stat(pid)[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def send(number: int, pid: int, start_time_ticks: int, owner: int | None = None) -> None:
    """A signal to that very process, if it is the owner's where there is one; silently nothing when it is gone. Raises
    permission_denied."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    except OSError as error:
        raise PermissionDeniedError(str(error), object=f"pid {pid}") from error
    try:
        # The descriptor holds on to whatever process has the pid now; only then is its identity checked.
        if runs(pid, start_time_ticks) and (owner is None or users_of(pid) == {owner}):
            signal.pidfd_send_signal(fd, number)
    except ProcessLookupError:
        return
    except PermissionError as error:
        raise PermissionDeniedError(str(error), object=f"pid {pid}") from error
    finally:
        os.close(fd)


LOOKS_MAX = 100


def end_all(look: Callable[[], Iterable[tuple[int, int]]], owner: int | None = None) -> None:
    """Kills the processes (pid, start time) that `look` tells of, of that owner only where there is one; looks again
    until it finds no new one. Stopped first, children after their parents: whoever is stopped forks no more, and while
    it is there its children can be told by it. Raises permission_denied, when as many as can be are dead."""
    stopped: dict[tuple[int, int], None] = {}
    denied: PermissionDeniedError | None = None
    for _ in range(LOOKS_MAX):
        new = [process for process in look() if process not in stopped]
        if not new:
            break
        for process in new:
            stopped[process] = None
            try:
                send(signal.SIGSTOP, *process, owner)
            except PermissionDeniedError as error:
                denied = error
    # Children first, so that none of them sees its parent go.
    for process in reversed(stopped):
        try:
            send(signal.SIGKILL, *process, owner)
        except PermissionDeniedError as error:
            denied = error
    if denied is not None:
        raise denied


def users_of(pid: int) -> set[int]:
    """Real, effective, saved and file-system user of a process. Raises ProcessLookupError when it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_bytes()
    except FileNotFoundError as error:
        raise ProcessLookupError(pid) from error
    for line in status.splitlines():
        if line.startswith(b"Uid:"):
            return {int(word) for word in line.split()[1:]}
    raise ProcessLookupError(pid)


def require_processes_of(uid: int, pids: Iterable[int]) -> None:
    """Raises permission_denied unless every process that still runs is that user's through and through: all of its
    user ids, and nothing that its user could not trace (set-uid and set-capability programs, non-dumpable ones)."""
    for pid in pids:
        try:
            users = users_of(pid)
            # Root owns this file of a process that is not dumpable.
            traceable_by = Path(f"/proc/{pid}/mem").stat().st_uid
        except (FileNotFoundError, ProcessLookupError):
            continue
        if users != {uid}:
            raise PermissionDeniedError(f"not a process of user {uid}", object=f"pid {pid}")
        if traceable_by != uid:
            raise PermissionDeniedError(
                f"not open to tracing by user {uid}",
                object=f"pid {pid}",
                hint="its user could not trace it either",
            )


def is_in_cgroups(pid: int, folders: list[str]) -> bool:
    """Whether a process is in one of these cgroups, or below."""
    if not folders:
        return False
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except OSError:
        return False
    names = [line.split(":", 2)[2] for line in lines if line.count(":") >= 2]
    groups = [str(p) for name in names for p in (Path(name), *Path(name).parents) if p != Path("/")]
    return any(folder.endswith(group) for folder in folders for group in groups)
