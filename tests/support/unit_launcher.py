"""Starts a service as its unit file says, without systemd: `unit_launcher.py UNIT STAGE FOLDER`.

STAGE holds usr/local and etc of an installation, seen at their places by the service; FOLDER gets its runtime and
state folders (run/NAME, state/NAME). Mounts, user, capabilities, limits and seccomp filters are those that systemd
makes of the directives; one that is not known here ends the launch, so that none goes untested.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
import shutil
import socket
import stat
import subprocess
import sys
from pathlib import Path

from tests.support.seccomp import EQ, GT, MASKED_EQ, NE, Filter
from tests.support.unit_file import FILTERS, Unit

DYNAMIC_UID = 61_234
# What the manager does, not the process: nothing to apply here.
OF_THE_MANAGER = frozenset(
    [
        "Type",
        "ExecStart",
        "Restart",
        "RestartSec",
        "TimeoutStartSec",
        "TimeoutStopSec",
        "KillMode",
        "OOMPolicy",
        "RuntimeDirectoryPreserve",
    ]
)
APPLIED = FILTERS | frozenset(
    [
        "CapabilityBoundingSet",
        "NoNewPrivileges",
        "ProtectSystem",
        "ProtectHome",
        "ProtectProc",
        "PrivateTmp",
        "ProtectControlGroups",
        "RuntimeDirectory",
        "StateDirectory",
        "StateDirectoryMode",
        "UMask",
        "OOMScoreAdjust",
        "LimitNOFILE",
        "LimitMEMLOCK",
        "LimitCORE",
        "LoadCredential",
        "SystemCallErrorNumber",
    ]
)
CLONE_NEWNS, CLONE_NEWUTS = 0x00020000, 0x04000000
NAMESPACES = (CLONE_NEWNS, 0x02000000, CLONE_NEWUTS, 0x08000000, 0x10000000, 0x20000000, 0x40000000, 0x80)
PR_SET_NO_NEW_PRIVS, PR_CAPBSET_DROP = 38, 24
CAPABILITIES = [
    "chown",
    "dac_override",
    "dac_read_search",
    "fowner",
    "fsetid",
    "kill",
    "setgid",
    "setuid",
    "setpcap",
    "linux_immutable",
    "net_bind_service",
    "net_broadcast",
    "net_admin",
    "net_raw",
    "ipc_lock",
    "ipc_owner",
    "sys_module",
    "sys_rawio",
    "sys_chroot",
    "sys_ptrace",
    "sys_pacct",
    "sys_admin",
    "sys_boot",
    "sys_nice",
    "sys_resource",
    "sys_time",
    "sys_tty_config",
    "mknod",
    "lease",
    "audit_write",
    "audit_control",
    "setfcap",
    "mac_override",
    "mac_admin",
    "syslog",
    "wake_alarm",
    "block_suspend",
    "audit_read",
    "perfmon",
    "bpf",
    "checkpoint_restore",
]
libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def mount_points() -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line.split()[4].encode().decode("unicode_escape") for line in lines]


def read_only(path: str) -> None:
    """This mount alone, whatever its other flags."""
    attributes = (ctypes.c_uint64 * 4)(1, 0, 0, 0)  # MOUNT_ATTR_RDONLY to set
    done = libc.syscall(442, -100, path.encode(), 0, ctypes.byref(attributes), ctypes.c_size_t(32))
    if done < 0 and ctypes.get_errno() not in (errno.EINVAL, errno.ENOENT, errno.EACCES):
        check(done, f"mount_setattr {path}")


def below(path: str, folders: tuple[str, ...]) -> bool:
    return any(path == f or path.startswith(f + "/") for f in folders)


class Launch:
    def __init__(self, unit: Unit, stage: Path, folder: Path) -> None:
        self.unit, self.stage, self.folder = unit, stage, folder
        unknown = set(unit.service) - OF_THE_MANAGER - APPLIED
        assert not unknown, f"{unit.name}: this launcher does not know {sorted(unknown)}"
        self.uid = DYNAMIC_UID if unit.on("DynamicUser") else 0
        # systemd.exec(5): implied by DynamicUser.
        self.strict = unit.one("ProtectSystem") == "strict" or unit.on("DynamicUser")
        self.groups = {g: expanded(g) for g in ("@clock", "@module", "@raw-io")}
        words = unit.words("SystemCallFilter")
        # @default is always allowed.
        self.allowed = {name for word in (*words, *["@default"][: len(words)]) for name in expanded(word)}
        self.environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin", "LANG": "C.UTF-8"}
        if "NOTIFY_SOCKET" in os.environ:
            self.environment["NOTIFY_SOCKET"] = os.environ["NOTIFY_SOCKET"]
        self.credentials = f"/run/credentials/{unit.name}"

    # --- mounts ----------------------------------------------------------------------------------------------
    def mounts(self) -> None:
        check(libc.unshare(CLONE_NEWNS), "unshare")
        mount("--make-rslave", "/")
        scratch = self.folder / "scratch"
        scratch.mkdir(exist_ok=True)
        mount("-t", "tmpfs", "tmpfs", str(scratch))
        for place in ("/usr/local", "/etc"):
            mount("-t", "overlay", "overlay", "-o", f"lowerdir={self.stage}{place}:{place}", place)
        for place in ("/run", "/var/lib"):  # where folders are made that this machine may not have
            name = place.replace("/", "-")
            for part in ("upper", "work"):
                (scratch / f"{part}{name}").mkdir()
            layers = f"lowerdir={place},upperdir={scratch}/upper{name},workdir={scratch}/work{name}"
            mount("-t", "overlay", "overlay", "-o", layers, place)
        writable = ["/dev", "/proc", "/sys", *self.own_folders()]
        self.show_other_runtime_folders(writable)
        self.give_credentials()
        if self.unit.on("PrivateTmp") or self.unit.on("DynamicUser"):
            for place in ("/tmp", "/var/tmp"):
                writable.append(place)
                self.hide(place, "1777")
        if self.unit.one("ProtectHome") == "yes":
            for place in ("/home", "/root", "/run/user"):
                if Path(place).is_dir():
                    self.hide(place, "000")
        if self.unit.one("ProtectProc") == "invisible":
            mount("-t", "proc", "-o", "hidepid=invisible", "proc", "/proc")
        if self.unit.on("PrivateDevices"):
            self.own_devices()
        if self.strict:
            for place in mount_points():
                if not below(place, tuple(writable)):
                    read_only(place)
        elif self.unit.one("ProtectHome") == "read-only":
            raise AssertionError("ProtectHome=read-only is only known beside ProtectSystem=strict")
        if self.unit.on("ProtectControlGroups"):
            for place in mount_points():
                if below(place, ("/sys/fs/cgroup",)):
                    read_only(place)
        if self.unit.on("ProtectKernelTunables"):
            mount("--bind", "/proc/sys", "/proc/sys")
            read_only("/proc/sys")

    def own_folders(self) -> list[str]:
        made = []
        for directive, place, ours in (
            ("RuntimeDirectory", "/run", "run"),
            ("StateDirectory", "/var/lib", "state"),
        ):
            for name in self.unit.words(directive):
                source, target = self.folder / ours / name, Path(place) / name
                source.mkdir(parents=True, exist_ok=True)
                source.chmod(int(self.unit.one(f"{directive}Mode", "0755"), 8))
                os.chown(source, self.uid, self.uid)
                target.mkdir(exist_ok=True)
                mount("--bind", str(source), str(target))
                made.append(str(target))
                self.environment[directive.replace("Directory", "_DIRECTORY").upper()] = str(target)
        return made

    def show_other_runtime_folders(self, own: list[str]) -> None:
        """Of services that were started before with the same FOLDER: their sockets are there for everybody."""
        for source in (self.folder / "run").glob("*"):
            target = Path("/run") / source.name
            if str(target) not in own:
                target.mkdir(exist_ok=True)
                mount("--bind", str(source), str(target))

    def give_credentials(self) -> None:
        if "LoadCredential" not in self.unit.service:
            return
        Path(self.credentials).mkdir(parents=True)
        mount("-t", "tmpfs", "-o", "mode=700", "tmpfs", self.credentials)
        for value in self.unit.service["LoadCredential"]:
            name, _, source = value.partition(":")
            files = {name: Path(source)}
            if Path(source).is_dir():
                files = {f"{name}_{path.name}": path for path in Path(source).iterdir()}
            for own, path in files.items():
                target = Path(self.credentials) / own
                shutil.copyfile(path, target)
                target.chmod(0o400)
                os.chown(target, self.uid, self.uid)
        os.chown(self.credentials, self.uid, self.uid)
        self.environment["CREDENTIALS_DIRECTORY"] = self.credentials

    def hide(self, place: str, mode: str) -> None:
        # What the test itself has under /tmp must stay reachable for its sockets.
        mount("-t", "tmpfs", "-o", f"mode={mode}", "tmpfs", place)

    def own_devices(self) -> None:
        mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", "/dev")
        for name, minor in (("null", 3), ("zero", 5), ("full", 7), ("random", 8), ("urandom", 9)):
            os.mknod(f"/dev/{name}", 0o666 | stat.S_IFCHR, os.makedev(1, minor))
            Path(f"/dev/{name}").chmod(0o666)
        Path("/dev/shm").mkdir(mode=0o1777)

    # --- the process -----------------------------------------------------------------------------------------
    def limits(self) -> None:
        for name in ("NOFILE", "MEMLOCK", "CORE"):
            if value := self.unit.one(f"Limit{name}"):
                limit = getattr(resource, f"RLIMIT_{name}")
                number = resource.RLIM_INFINITY if value == "infinity" else int(value)
                try:
                    resource.setrlimit(limit, (number, number))
                except (
                    ValueError
                ):  # a machine that has no CAP_SYS_RESOURCE, as a container: as far as it goes
                    most = resource.getrlimit(limit)[1]
                    resource.setrlimit(limit, (most, most))
        with contextlib.suppress(PermissionError):  # the same
            Path("/proc/self/oom_score_adj").write_text(self.unit.one("OOMScoreAdjust", "0"))
        os.umask(int(self.unit.one("UMask", "0022"), 8))

    def rights(self) -> None:
        if "CapabilityBoundingSet" in self.unit.service:
            kept = {word.removeprefix("CAP_").lower() for word in self.unit.words("CapabilityBoundingSet")}
            assert kept <= set(CAPABILITIES), kept
            last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
            for number, name in enumerate(CAPABILITIES[: last + 1]):
                if name not in kept:
                    check(libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0), f"drop {name}")
        if self.uid:
            os.setgroups([])
            os.setresgid(self.uid, self.uid, self.uid)
            os.setresuid(self.uid, self.uid, self.uid)
        if self.unit.on("NoNewPrivileges") or self.unit.on("DynamicUser"):
            check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")

    def filters(self) -> list[Filter]:
        unit, made = self.unit, []
        denied = Filter()
        for directive, names in (
            ("PrivateDevices", self.groups["@raw-io"]),
            ("ProtectClock", self.groups["@clock"]),
            ("ProtectKernelModules", self.groups["@module"]),
            ("ProtectKernelLogs", ["syslog"]),
            ("ProtectHostname", ["sethostname", "setdomainname"]),
        ):
            for name in names if unit.on(directive) else ():
                denied.deny(name)
        if "RestrictAddressFamilies" in unit.service:
            families = {int(getattr(socket, word)) for word in unit.words("RestrictAddressFamilies")}
            for family in set(range(64)) - families:
                denied.deny("socket", (0, EQ, family), error=errno.EAFNOSUPPORT)
            denied.deny("socket", (0, GT, 63), error=errno.EAFNOSUPPORT)
        if unit.on("RestrictNamespaces"):
            denied.deny("setns")
            denied.deny("clone3", error=errno.ENOSYS)
            for flag in NAMESPACES:
                for name in ("unshare", "clone"):
                    denied.deny(name, (0, MASKED_EQ, flag, flag))
        if unit.on("RestrictRealtime"):
            for policy in (1, 2, 6):
                denied.deny("sched_setscheduler", (1, EQ, policy))
        if unit.on("LockPersonality"):
            denied.deny("personality", (0, NE, 0))
        if unit.on("MemoryDenyWriteExecute"):
            denied.deny("mmap", (2, MASKED_EQ, 6, 6))
            denied.deny("mprotect", (2, MASKED_EQ, 4, 4))
            denied.deny("pkey_mprotect", (2, MASKED_EQ, 4, 4))
            denied.deny("shmat", (2, MASKED_EQ, 0o100000, 0o100000))
        if unit.on("RestrictSUIDSGID") or unit.on("DynamicUser"):
            for bit in (stat.S_ISUID, stat.S_ISGID):
                denied.deny("chmod", (1, MASKED_EQ, bit, bit))
                denied.deny("fchmod", (1, MASKED_EQ, bit, bit))
                denied.deny("fchmodat", (2, MASKED_EQ, bit, bit))
        if FILTERS & set(unit.service):
            made.append(denied)
        if self.allowed:
            allowed = Filter(denies_others=True)
            allowed.allow(self.allowed)
            made.append(allowed)
        return made

    def run(self) -> None:
        # systemd substitutes %d; nothing else of its own is used.
        command = self.unit.one("ExecStart").replace("%d", self.credentials).split()
        self.mounts()
        if self.unit.on("ProtectHostname"):
            check(libc.unshare(CLONE_NEWUTS), "unshare")
        self.limits()
        filters = self.filters()
        os.chdir("/")
        self.rights()
        for one in filters:
            one.load()
        os.execve(command[0], command, self.environment)


def expanded(word: str) -> list[str]:
    """The calls of a set like @system-service, sets in it included."""
    if not word.startswith("@"):
        return [word]
    done = subprocess.run(
        ["systemd-analyze", "syscall-filter", word], capture_output=True, text=True, check=True
    )
    lines = [line.strip() for line in done.stdout.splitlines()[1:]]
    return [name for line in lines if line and not line.startswith("#") for name in expanded(line)]


if __name__ == "__main__":
    Launch(Unit(Path(sys.argv[1])), Path(sys.argv[2]), Path(sys.argv[3])).run()
