"""A guest that boots and runs one command.

The guest sees the host's files at the same paths (read-only below, writes go to memory and vanish), has two
cores, an `rxe0` RDMA device on the dummy interface 10.9.0.1, userfaultfd and root. Under emulation it is some
twenty times slower than the host: only correctness, counts and ratios mean anything there.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

MODULES = (
    "virtio_pci",
    "virtio_rng",
    "virtio_net",
    "9pnet_virtio",
    "9p",
    "overlay",
    "veth",
    "dummy",
    "rdma_rxe",
    "ib_uverbs",
    "rdma_ucm",
)
GUEST_MEMORY_MB = 3072
HERE = Path(__file__).resolve().parent
PROJECT = HERE.parents[2]
CACHE = PROJECT / "build" / "rdma-vm"

JOB = """\
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb LANG=C.UTF-8 MEDES_RDMA_GUEST=1
hostname medes-guest
ip link set lo up
ip link show dummy0 >/dev/null 2>&1 || ip link add dummy0 type dummy
ip link set dummy0 mtu 9000 up && ip addr add 10.9.0.1/24 dev dummy0
rdma link add rxe0 type rxe netdev dummy0
ulimit -l unlimited
echo +memory >/sys/fs/cgroup/cgroup.subtree_control
cd {cwd}
{exports}
timeout -k 5 {timeout} {command} >/mnt/medes-vm/output 2>&1
status=$?
[ $status -lt 128 ] || dmesg | grep -iE 'oom|killed process|segfault' | tail -5 >>/mnt/medes-vm/output
echo $status >/mnt/medes-vm/status
sync
echo o >/proc/sysrq-trigger
sleep 60
"""


@dataclass(frozen=True)
class GuestResult:
    """What a command did in the guest. status is None when the guest died before the command ended."""

    status: int | None
    output: str
    console: str


def missing() -> str:
    """Why no guest can be booted here; empty when one can."""
    if os.uname().machine != "x86_64":
        return "the guest recipe is for x86-64 only"
    if shutil.which("qemu-system-x86_64") is None:
        return "qemu-system-x86_64 is not installed (apt-get install qemu-system-x86)"
    if _busybox() is None:
        return "a static busybox is not installed (apt-get install busybox-static)"
    if _kernel() is None:
        return "no Debian guest kernel with rdma_rxe under /boot (apt-get install linux-image-amd64)"
    if os.geteuid() != 0:
        return "sharing the root file system with the guest needs root"
    return ""


class Guest:
    """One that boots, runs `command` in the project's folder and powers off; timeout_s is the command's."""

    def __init__(
        self, command: list[str], *, timeout_s: int = 600, environment: dict[str, str] | None = None
    ) -> None:
        """Returns at once. Raises RuntimeError where none can be booted."""
        reason = missing()
        if reason:
            raise RuntimeError(reason)
        self._folder = tempfile.TemporaryDirectory(prefix="medes-vm-")
        self._share = Path(self._folder.name)
        exports = "\n".join(f"export {k}={shlex.quote(v)}" for k, v in (environment or {}).items())
        job = JOB.format(
            cwd=shlex.quote(str(PROJECT)), exports=exports, timeout=timeout_s, command=shlex.join(command)
        )
        (self._share / "job.sh").write_text(job)
        self._timeout_s = timeout_s + 120
        self._qemu = subprocess.Popen(
            _qemu(self._share), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def wait(self) -> GuestResult:
        """(blocks) What became of it. Once."""
        with contextlib.suppress(subprocess.TimeoutExpired):  # status then stays None
            self._qemu.wait(self._timeout_s)
        self._end()
        result = GuestResult(
            status=_integer(self._share / "status"),
            output=_text(self._share / "output"),
            console=_text(self._share / "console"),
        )
        self._folder.cleanup()
        return result

    def kill(self) -> None:
        """Nobody waits for it any more. Repeatable, also after `wait`."""
        self._end()
        self._folder.cleanup()

    def _end(self) -> None:
        if self._qemu.poll() is None:
            self._qemu.kill()
        self._qemu.wait()


def _qemu(share: Path) -> list[str]:
    kernel = _kernel()
    assert kernel is not None
    keep_tmp = " medes.keep_tmp" if PROJECT.is_relative_to("/tmp") else ""
    return [
        "nice", "-n", "5", "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2",
        "-m", str(GUEST_MEMORY_MB), "-nodefaults", "-display", "none", "-no-reboot",
        "-serial", f"file:{share / 'console'}", "-kernel", str(kernel), "-initrd", str(initramfs()),
        "-append", "console=ttyS0 quiet mitigations=off tsc=reliable panic=-1" + keep_tmp,
        "-fsdev", "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap",
        "-device", "virtio-9p-pci,fsdev=host,mount_tag=host",
        "-fsdev", f"local,id=share,path={share},security_model=none",
        "-device", "virtio-9p-pci,fsdev=share,mount_tag=share",
        "-device", "virtio-rng-pci",
    ]  # fmt: skip


def initramfs() -> Path:
    """The cached initramfs of busybox, init.sh and the modules, in load order. Built anew when any of them changed."""
    kernel = _kernel()
    assert kernel is not None
    version = kernel.name.removeprefix("vmlinuz-")
    target = CACHE / f"initramfs-{version}.cpio"
    if target.exists() and target.stat().st_mtime > (HERE / "init.sh").stat().st_mtime:
        return target
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as root_name:
        root = Path(root_name)
        (root / "bin").mkdir()
        (root / "modules").mkdir()
        busybox = _busybox()
        assert busybox is not None
        shutil.copy(busybox, root / "bin" / "busybox")
        shutil.copy(HERE / "init.sh", root / "init")
        (root / "init").chmod(0o755)
        order: list[str] = []
        for name in MODULES:
            for path in _module_closure(version, name):
                if path.name not in order:
                    shutil.copy(path, root / "modules" / path.name)
                    order.append(path.name)
        (root / "modules" / "order").write_text("\n".join(order))
        archive = subprocess.run(
            "find . | cpio --quiet -o -H newc" if shutil.which("cpio") else "find . | ./bin/busybox cpio -o -H newc",
            shell=True, cwd=root, check=True, capture_output=True,
        ).stdout  # fmt: skip
        partial = target.with_suffix(".partial")
        partial.write_bytes(archive)
        partial.rename(target)
    return target


def _module_closure(version: str, name: str) -> list[Path]:
    shown = subprocess.run(
        ["modprobe", "-S", version, "--show-depends", name], check=True, capture_output=True, text=True
    ).stdout
    return [Path(line.split()[1]) for line in shown.splitlines() if line.startswith("insmod ")]


def _kernel() -> Path | None:
    for kernel in sorted(Path("/boot").glob("vmlinuz-*-amd64"), reverse=True):
        version = kernel.name.removeprefix("vmlinuz-")
        if any(Path(f"/lib/modules/{version}").rglob("rdma_rxe.ko*")):
            return kernel
    return None


def _busybox() -> Path | None:
    found = shutil.which("busybox")
    if found is None:
        return None
    # ldd fails on a static executable; a dynamic busybox cannot run in an initramfs without libraries.
    dynamic = subprocess.run(["ldd", found], capture_output=True, check=False).returncode == 0
    return None if dynamic else Path(found)


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def _integer(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdigit() else None
