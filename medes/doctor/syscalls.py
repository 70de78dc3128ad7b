"""System calls that Python has no function for, with errno as OSError. Numbers by architecture."""

from __future__ import annotations

import ctypes
import errno
import os
import platform

_libc = ctypes.CDLL(None, use_errno=True)

# Above 424 the numbers are the same everywhere.
NUMBERS: dict[str, dict[str, int]] = {
    "x86_64": {"userfaultfd": 323, "pidfd_open": 434, "pidfd_getfd": 438},
    "aarch64": {"userfaultfd": 282, "pidfd_open": 434, "pidfd_getfd": 438},
}
ARCHITECTURE = platform.machine()


def call(name: str, *arguments: int) -> int:
    """The result of a system call. Raises OSError (ENOSYS on an architecture we have no number for)."""
    number = NUMBERS.get(ARCHITECTURE, {}).get(name)
    if number is None:
        raise OSError(errno.ENOSYS, f"no call number of {name} for {ARCHITECTURE}")
    result: int = _libc.syscall(ctypes.c_long(number), *(ctypes.c_long(a) for a in arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def ptrace(request: int, pid: int, address: int = 0, data: int = 0) -> int:
    """ptrace(2). Raises OSError."""
    function = _libc.ptrace
    function.restype = ctypes.c_long
    function.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    result: int = function(request, pid, address, data)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def prctl(option: int, value: int = 0) -> int:
    """prctl(2). Raises OSError."""
    result: int = _libc.prctl(
        option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)
    )
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
