"""Seccomp filters by libseccomp, for what systemd and container engines put on a process.

Run as a program (`seccomp.py COMMAND…`) it denies what the default filter of a container engine denies, and becomes
COMMAND.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Iterable

_ALLOW = 0x7FFF0000
NE, LT, LE, EQ, GE, GT, MASKED_EQ = range(1, 8)
# Some of what Docker's default profile denies: all that the live driver makes a sandbox call is among it.
CONTAINER_DENIES = (
    "userfaultfd",
    "ptrace",
    "process_vm_readv",
    "pidfd_getfd",
    "mount",
    "setns",
    "bpf",
    "keyctl",
)


class _Comparison(ctypes.Structure):
    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("a", ctypes.c_uint64),
        ("b", ctypes.c_uint64),
    )


def _refusal(number: int) -> int:
    return 0x00050000 | number


class Filter:
    """One filter under construction; `load` puts it on this thread and all it starts."""

    def __init__(self, *, denies_others: bool = False) -> None:
        library = self._library = ctypes.CDLL("libseccomp.so.2")
        library.seccomp_init.restype = ctypes.c_void_p
        self._denies_others = denies_others
        self._context = ctypes.c_void_p(
            library.seccomp_init(_refusal(errno.EPERM) if denies_others else _ALLOW)
        )

    def allow(self, names: Iterable[str]) -> None:
        for name in names:
            self._rule(_ALLOW, name, ())

    def deny(
        self, name: str, *where: tuple[int, int, int] | tuple[int, int, int, int], error: int = errno.EPERM
    ) -> None:
        """`where`: (argument, operator, value), or for MASKED_EQ (argument, operator, mask, value)."""
        self._rule(_refusal(error), name, where)

    def _rule(self, action: int, name: str, where: tuple[tuple[int, ...], ...]) -> None:
        number = self._library.seccomp_syscall_resolve_name(name.encode())
        if number < 0:  # a call of another architecture, or newer than the library
            return
        comparisons = (_Comparison * len(where))(*(_Comparison(*w) for w in where))
        done = self._library.seccomp_rule_add_array(self._context, action, number, len(where), comparisons)
        assert done == 0, (name, os.strerror(-done))

    def load(self) -> None:
        done = self._library.seccomp_load(self._context)
        assert done == 0, os.strerror(-done)


def main(command: list[str]) -> None:
    refused = Filter()
    for name in CONTAINER_DENIES:
        refused.deny(name)
    refused.load()
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
