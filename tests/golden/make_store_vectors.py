"""Adds to store_vectors.json the files that an agent of this version leaves behind. Run it once for each release, and when
a format changes: `python -m tests.golden.make_store_vectors NAME`."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

from medes.agent.sandboxes.working_sets import WorkingSetStore
from medes.client import MedesClient

VECTORS = Path(__file__).with_name("store_vectors.json")
# As few pages as a process can have.
PROGRAM = """
static long text[1024] = {1, 2, 3, 0x5eed};
void _start(void) {
  for (int i = 0; i < 1024; i += 7) text[i] ^= i * 2654435761u;
  for (;;) __asm__ volatile("syscall" : : "a"(34) : "rcx", "r11", "memory");
}
"""


def packed(path: Path) -> str:
    return base64.b64encode(zlib.compress(path.read_bytes(), 9)).decode()


def collect(folder: Path, shm: Path) -> dict[str, str]:
    """Runs an agent with the image driver over two instances, ends it with SIGKILL, and takes what it leaves."""
    source, program = folder / "p.c", folder / "p"
    source.write_text(PROGRAM)
    flags = ["-O1", "-nostdlib", "-static", "-fno-stack-protector"]
    subprocess.run(["gcc", *flags, "-o", program, source], check=True)
    sockets = Path(tempfile.mkdtemp(prefix="medes-golden-", dir="/tmp"))
    address = f"unix:{sockets}/a.sock"
    settings = {
        "node-id": "golden",
        "controllers": "",
        "listen": address,
        "state-dir": folder / "state",
        "shm-dir": shm,
        "peer-address": "127.0.0.1:0",
    }
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MEDES_")}
    agent = subprocess.Popen(
        [sys.executable, "-m", "medes", "agent", *(f"--{k}={v}" for k, v in settings.items())],
        stdout=subprocess.PIPE,
        env=environment,
    )
    instances = [subprocess.Popen([program], env={}) for _ in range(2)]
    try:
        assert agent.stdout is not None
        agent.stdout.readline()
        time.sleep(0.2)
        with MedesClient(address) as client:
            for n, instance in enumerate(instances):
                client.register("f", pids=[instance.pid], sandbox_id=f"s{n}", driver="image")
                client.dedup(f"s{n}")
    finally:
        for process in (agent, *instances):
            process.kill()
            process.wait()
        shutil.rmtree(sockets)
    working_sets = WorkingSetStore(folder / "ws")
    working_sets.get("d", "f").merge([(1, 10), (1, 11), (2, 5)], frozenset())
    working_sets.save("d", "f")
    (ws,) = (folder / "ws").iterdir()
    files = {p.name: packed(p) for p in sorted(shm.iterdir()) if p.suffix in (".slab", ".medes", ".key")}
    return {**files, "journal": packed(folder / "state" / "journal"), f"working-sets/{ws.name}": packed(ws)}


def main(name: str) -> None:
    known = json.loads(VECTORS.read_text()) if VECTORS.exists() else {}
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory(dir="/dev/shm") as shm:
        known[name] = collect(Path(folder), Path(shm))
    VECTORS.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
