"""userfaultfd: may we have one, what does it offer, does it fill a page of ours."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from medes.doctor import syscalls
from medes.doctor.check import Check

GROUP = "userfaultfd"
LIVE = "the live driver"
DEVICE = Path("/dev/userfaultfd")
SYSCTL = Path("/proc/sys/vm/unprivileged_userfaultfd")
FIX = "run as root or with CAP_SYS_PTRACE, or set vm.unprivileged_userfaultfd=1; allow the call in the seccomp profile"

FEATURES = [
    "PAGEFAULT_FLAG_WP",
    "EVENT_FORK",
    "EVENT_REMAP",
    "EVENT_REMOVE",
    "MISSING_HUGETLBFS",
    "MISSING_SHMEM",
    "EVENT_UNMAP",
    "SIGBUS",
    "THREAD_ID",
    "MINOR_HUGETLBFS",
    "MINOR_SHMEM",
    "EXACT_ADDRESS",
    "WP_HUGETLBFS_SHMEM",
    "WP_UNPOPULATED",
    "POISON",
    "WP_ASYNC",
    "MOVE",
]
# fork, mremap, MADV_DONTNEED and munmap by a sandbox with missing pages must be seen.
NEEDED = ("EVENT_FORK", "EVENT_REMAP", "EVENT_REMOVE", "EVENT_UNMAP")

_API = 0xC018AA3F
_REGISTER = 0xC020AA00
_COPY = 0xC028AA03
_NEW = 0xAA00
_USER_MODE_ONLY = 1
_MODE_MISSING = 1


def _open(flags: int = 0) -> int:
    return syscalls.call("userfaultfd", flags | os.O_CLOEXEC | os.O_NONBLOCK)


def _features(descriptor: int) -> int:
    """The API handshake: asks for nothing, is told all that the kernel offers."""
    buffer = bytearray(struct.pack("<QQQ", 0xAA, 0, 0))
    fcntl.ioctl(descriptor, _API, buffer)
    return int(struct.unpack("<QQQ", buffer)[1])


def _fills_a_page(descriptor: int) -> bool:
    """Registers a page of our own, fills it through the descriptor and reads it: the kernel's side of a restore."""
    source = ctypes.create_string_buffer(bytes(i * 7 % 256 for i in range(mmap.PAGESIZE)), mmap.PAGESIZE)
    with mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as target:
        view = ctypes.c_char.from_buffer(target)
        address = ctypes.addressof(view)
        try:
            fcntl.ioctl(
                descriptor,
                _REGISTER,
                bytearray(struct.pack("<QQQQ", address, mmap.PAGESIZE, _MODE_MISSING, 0)),
            )
            copy = struct.pack("<QQQQq", address, ctypes.addressof(source), mmap.PAGESIZE, 0, 0)
            fcntl.ioctl(descriptor, _COPY, bytearray(copy))
            return bool(target[:] == source.raw)
        finally:
            del view


def probe() -> Iterator[Check]:
    try:
        descriptor = _open()
    except OSError as error:
        yield Check(GROUP, "system call", False, error.strerror or str(error), FIX, LIVE)
        yield from _user_mode()
    else:
        yield Check(GROUP, "system call", True, "kernel faults included", needed_for=LIVE)
        with os.fdopen(descriptor, "rb", buffering=0):
            yield from _offers(descriptor)
    yield _device()
    if SYSCTL.exists():
        value = SYSCTL.read_text().strip()
        yield Check(
            GROUP, "vm.unprivileged_userfaultfd", True, f"{value} (1 lets processes without rights use it)"
        )


def _offers(descriptor: int) -> Iterator[Check]:
    bits = _features(descriptor)
    names = [name for i, name in enumerate(FEATURES) if bits >> i & 1]
    lacking = [name for name in NEEDED if name not in names]
    detail = f"lacks {', '.join(lacking)}" if lacking else f"all {len(NEEDED)} events"
    yield Check(GROUP, "events", not lacking, detail, "Linux 4.11 or newer" if lacking else "", LIVE)
    yield Check(GROUP, "features", True, f"{bits:#x}: {' '.join(names)}")
    try:
        works = _fills_a_page(descriptor)
        yield Check(
            GROUP, "fill a missing page", works, "verified" if works else "wrong bytes", needed_for=LIVE
        )
    except OSError as error:
        yield Check(GROUP, "fill a missing page", False, error.strerror or str(error), FIX, LIVE)


def _user_mode() -> Iterator[Check]:
    try:
        os.close(_open(_USER_MODE_ONLY))
    except OSError as error:
        yield Check(GROUP, "user mode only", False, error.strerror or str(error), FIX)
    else:
        detail = "allowed, but not enough: system calls of a sandbox touch missing pages too"
        yield Check(GROUP, "user mode only", False, detail, FIX)


def _device() -> Check:
    name = str(DEVICE)
    if not DEVICE.exists():
        return Check(GROUP, name, False, "absent", "Linux 6.1 or newer; the system call does as well")
    try:
        with DEVICE.open("rb", buffering=0) as device:
            os.close(fcntl.ioctl(device, _NEW, os.O_CLOEXEC))
    except OSError as error:
        return Check(GROUP, name, False, error.strerror or str(error), f"grant read access to {name}")
    return Check(GROUP, name, True, "opens")
