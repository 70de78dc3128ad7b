"""ptrace and its relatives, tried on a child of our own."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from medes import native
from medes.doctor import syscalls
from medes.doctor.check import Check

GROUP = "ptrace"
LIVE = "the live driver"
FIX = "run as root or with CAP_SYS_PTRACE in the sandboxes' user namespace"
CAPABILITIES = {19: "CAP_SYS_PTRACE", 21: "CAP_SYS_ADMIN", 40: "CAP_CHECKPOINT_RESTORE"}

_SEIZE, _INTERRUPT, _DETACH = 0x4206, 0x4207, 17


def _status_field(name: str) -> str:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return line.split(":", 1)[1].strip()
    return ""


def probe() -> Iterator[Check]:
    effective = int(_status_field("CapEff") or "0", 16)
    for bit, name in CAPABILITIES.items():
        held = bool(effective >> bit & 1)
        fix = "" if held else "run as root, or grant it to the service"
        yield Check(GROUP, name, held, "held" if held else "not held", fix, LIVE if bit == 19 else "")
    scope = Path("/proc/sys/kernel/yama/ptrace_scope")
    if scope.exists():
        value = scope.read_text().strip()
        yield Check(
            GROUP,
            "yama ptrace_scope",
            value != "3",
            {"0": "0: as classic", "1": "1: children, or CAP_SYS_PTRACE", "2": "2: CAP_SYS_PTRACE only"}.get(
                value, f"{value}: no ptrace at all"
            ),
            "" if value != "3" else "cannot be lowered without a reboot",
            LIVE,
        )
    else:
        yield Check(GROUP, "yama ptrace_scope", True, "no Yama: as classic")
    why, fix = native.missing_seccomp_right()
    yield Check(
        GROUP,
        "seccomp",
        not why,
        why or "no filter on us",
        fix,
        "sandboxes with a filter, as containers have",
    )
    yield from _on_a_child()


def _on_a_child() -> Iterator[Check]:
    child = subprocess.Popen(["/bin/sleep", "60"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        yield _try("stop a process", lambda: _stop_and_go(child.pid))
        yield _try("read its memory", lambda: _read_stack(child.pid))
        yield _try("read its page map", lambda: _read_pagemap(child.pid))
        yield _try("take its descriptors", lambda: _take_descriptor(child.pid))
    finally:
        child.kill()
        child.wait()


def _try(name: str, action: Callable[[], str]) -> Check:
    try:
        detail = action()
    except OSError as error:
        return Check(GROUP, name, False, error.strerror or str(error), FIX, LIVE)
    return Check(GROUP, name, True, detail, needed_for=LIVE)


def _stop_and_go(pid: int) -> str:
    syscalls.ptrace(_SEIZE, pid)
    try:
        syscalls.ptrace(_INTERRUPT, pid)
        _, status = os.waitpid(pid, 0)
        if not os.WIFSTOPPED(status):
            raise OSError(0, f"unexpected status {status:#x}")
        stopped_by = os.WSTOPSIG(status)
    finally:
        syscalls.ptrace(_DETACH, pid)
    return f"seized, stopped ({signal.Signals(stopped_by).name}) and let go"


def _first_writable(pid: int) -> int:
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        if "[stack]" in line:
            return int(line.split("-")[1].split()[0], 16) - 4096
    raise OSError(0, "no stack in its maps")


def _read_stack(pid: int) -> str:
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        memory.seek(_first_writable(pid))
        return f"{len(memory.read(64))} bytes of its stack"


def _read_pagemap(pid: int) -> str:
    with Path(f"/proc/{pid}/pagemap").open("rb", buffering=0) as pagemap:
        pagemap.seek(_first_writable(pid) // 4096 * 8)
        entry = int.from_bytes(pagemap.read(8), "little")
    return "present bit set" if entry >> 63 & 1 else "readable"


def _take_descriptor(pid: int) -> str:
    descriptor = syscalls.call("pidfd_open", pid, 0)
    try:
        os.close(syscalls.call("pidfd_getfd", descriptor, 0, 0))
    finally:
        os.close(descriptor)
    return "pidfd_getfd works"
