"""Sandboxes that container run times started: namespaces and seccomp profile of their own, found by their cgroup."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from medes import native
from tests.support.live import Deduper, Program
from tests.support.memory_cgroup import memory_cgroup_of

pytestmark = pytest.mark.live
WAIT_S = 60.0

# Four processes, each with 4 MB of its own.
PREFORK = """
import hashlib, os, sys
pairs = []
def digest(data):
    return hashlib.sha256(b"".join(data)).hexdigest()
for worker in range(3):
    down, up = os.pipe(), os.pipe()
    if os.fork() == 0:
        data = [hashlib.sha256(f"{worker} {i}".encode()).digest() * 40 for i in range(3000)]
        while os.read(down[0], 1):
            os.write(up[1], digest(data).encode())
        os._exit(0)
    pairs.append((down[1], up[0]))
def ask():
    for down, _ in pairs:
        os.write(down, b"x")
    return [os.read(up, 64).decode() for _, up in pairs]
ask()
print("ready", flush=True)
for n, line in enumerate(sys.stdin):
    print(n, *ask(), flush=True)
"""


def _bundle(folder: Path, root: Path, runtime: str, cgroup: str) -> None:
    folder.mkdir()
    subprocess.run([runtime, "spec"], cwd=folder, check=True)
    spec = json.loads((folder / "config.json").read_text())
    spec["root"] = {"path": str(root), "readonly": True}
    spec["process"]["terminal"] = False
    spec["process"]["args"] = [sys.executable, "-c", PREFORK]
    spec["linux"]["cgroupsPath"] = cgroup
    # As container engines do: userfaultfd is refused inside. The driver asks the kernel to look away.
    spec["linux"]["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{"names": ["userfaultfd", "ptrace"], "action": "SCMP_ACT_ERRNO"}],
    }
    (folder / "config.json").write_text(json.dumps(spec))


@pytest.mark.parametrize("runtime_name", ["runc", "crun"])
def test_a_container(runtime_name: str, deduper: Deduper, tmp_path: Path) -> None:
    runtime = shutil.which(runtime_name)
    if runtime is None or shutil.which("unshare") is None:
        pytest.skip(f"{runtime_name} or unshare is not installed")
    root, state = tmp_path / "root", tmp_path / "state"
    root.mkdir()
    name = f"medes-test-{os.getpid()}-{runtime_name}"
    _bundle(tmp_path / "bundle", root, runtime, f"/{name}")
    call = [runtime, "--root", str(state)]
    steps = [f"mount --rbind / {root}"]
    if runtime_name == "crun":
        # crun 1.8 does not start beside a hybrid hierarchy: it is told of the v1 one alone.
        steps.append("{ umount -l /sys/fs/cgroup/unified 2>/dev/null || true; }")
        call += ["--cgroup-manager", "cgroupfs"]
    steps.append(f"exec {' '.join(call)} run --bundle {tmp_path / 'bundle'} {name}")
    try:
        program = Program(["unshare", "-m", "--propagation", "private", "sh", "-c", " && ".join(steps)])
    except AssertionError:
        pytest.skip(f"{runtime_name} cannot start a container here")
    with program:
        try:
            told = subprocess.run([*call, "state", name], capture_output=True, check=True)
            pids = native.process_tree([json.loads(told.stdout)["pid"]])
            assert len(pids) == 4
            expected = program.ask("ask")
            group = memory_cgroup_of(pids[0])
            assert group is not None, "the container has no memory cgroup"
            folder, usage = group
            assert sorted(native.cgroup_pids(str(folder))) == sorted(pids)
            before = int(usage.read_text())
            live = deduper.dedup(native.cgroup_pids(str(folder)))
            freed = live.evict_result["evicted_pages"] * native.PAGE_BYTES
            assert live.evict_result["processes"] == 4
            assert freed > 8 << 20
            # What the operator sees: the container's own account. Pages shared since a fork were counted once there.
            assert int(usage.read_text()) < before - (8 << 20)
            assert program.ask("ask") == expected
            assert live.wait_complete(WAIT_S)
            assert program.ask("ask") == expected
        finally:
            subprocess.run([*call, "kill", name, "KILL"], check=False)
            program.process.wait(WAIT_S)
            subprocess.run([*call, "delete", "--force", name], check=False)
