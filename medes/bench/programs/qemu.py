"""A small guest under QEMU: Linux and busybox, which answer on the serial line. Its state lies in the guest's memory."""

from __future__ import annotations

import itertools
import shutil
import socket
from pathlib import Path

from medes.bench.asleep_making import Made, Sizes, build, which
from medes.bench.asleep_state import ANSWER_TIMEOUT_S, HOST, item, items_digest
from medes.errors import CorruptError

KERNELS = "boot/vmlinuz-*-amd64"
MEMORY_MB = 256
BOOT_ANSWER_TIMEOUT_S = 2.0  # what is asked of a serial line before somebody reads it is lost
# The first process of the guest. The initramfs is its file system, and so the items are memory.
INIT = """#!/bin/busybox sh
/bin/busybox mkdir -p /dev /proc
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t proc proc /proc
exec </dev/ttyS0 >/dev/ttyS0 2>&1
/bin/busybox stty raw -echo
while read -r number word; do
  case "$word" in
    ping) echo "$number ok" ;;
    state) echo "$number $(/bin/busybox sha256sum </items)" ;;
  esac
done
"""


def qemu(folder: Path, port: int, sizes: Sizes) -> Made:
    root = folder / "root"
    (root / "bin").mkdir(parents=True)
    shutil.copy(which("busybox"), root / "bin" / "busybox")
    (root / "init").write_text(INIT)
    (root / "init").chmod(0o755)
    (root / "items").write_text("".join(map(item, range(sizes.items))))
    build("sh", "-c", "cd root && find . | busybox cpio -o -H newc >../initramfs", folder=folder)
    kernel = max(Path("/").glob(KERNELS))
    command = [
        "qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-smp", "1", "-m", str(MEMORY_MB),
        "-nodefaults", "-display", "none", "-no-reboot",
        "-kernel", str(kernel), "-initrd", str(folder / "initramfs"),
        "-append", "quiet mitigations=off tsc=reliable panic=-1",
        "-serial", f"tcp:{HOST}:{port},server=on,wait=off",
    ]  # fmt: skip
    return Made(command, Guest(sizes.items))


class Guest:
    """`count` items in a file of a guest that has no disk."""

    def __init__(self, count: int) -> None:
        self.expected = items_digest(count)
        self._numbers = itertools.count(1)
        self._answered = False

    def fill(self, port: int) -> None:
        self._answered = True

    def probe(self, port: int) -> None:
        if (answer := self._ask(port, "ping")) != "ok":
            raise CorruptError(f"answered {answer[:100]!r} to a probe", object="guest")

    def verify(self, port: int) -> None:
        if (answer := self._ask(port, "state").partition(" ")[0]) != self.expected:
            raise CorruptError(f"holds other items: {answer[:100]!r}", object="guest")

    def _ask(self, port: int, word: str) -> str:
        """The answer with the number that was asked with: another may still come of a connection that was given up."""
        number = str(next(self._numbers))
        timeout_s = ANSWER_TIMEOUT_S if self._answered else BOOT_ANSWER_TIMEOUT_S
        with socket.create_connection((HOST, port), timeout=timeout_s) as sock, sock.makefile("rb") as stream:
            sock.sendall(f"{number} {word}\n".encode())
            for line in stream:
                told, _, answer = line.decode(errors="replace").strip().partition(" ")
                if told == number:
                    return answer
        raise ConnectionResetError("the serial line was closed")
