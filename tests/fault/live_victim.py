"""An agent in small, to be killed: dedups a process and restores it. Run by test_live_faults.py.

usage: live_victim.py PID FOLDER {evict|restore|reclaim|linger|loop}; MEDES_FAULT in the environment says where it dies.
`reclaim` needs a sandbox that sleeps there already. `loop` first takes over what the one before left, then dedups and restores until it is killed.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from medes import native
from medes.errors import BusyError
from tests.support.live import Deduper

WAIT_S = 30.0
TOUCHES_PER_S_MAX = 1 << 18


def take_over(deduper: Deduper) -> None:
    """What the agent before left: served again, and restored."""
    files = sorted(deduper.folder.glob("sandbox-*.medes"))
    deduper.count = int(time.monotonic() * 1e6)
    if (deduper.folder / "base.slab").exists():
        deduper.use_base(native.Slab.open(str(deduper.folder / "base.slab")))
    for path in files:
        file = native.SandboxFile.open(str(path))
        live = deduper.server.adopt(file, deduper.bases())
        live.restore(background_bytes_per_s=20 << 20)
        assert live.wait_complete(WAIT_S)
        file.unlink()


def loop(deduper: Deduper, pid: int) -> None:
    take_over(deduper)
    print("looping", flush=True)
    while True:
        image, file, bases, _ = deduper.encode([pid])
        try:
            live = deduper.server.evict(image, file, bases)
            live.restore(background_bytes_per_s=8 << 20)
            assert live.wait_complete(WAIT_S)
        except BusyError:  # a vfork or a full stack: the op gives up, the program goes on
            pass
        file.unlink()


def reclaim(deduper: Deduper) -> None:
    """What another server put to sleep, and was touched since."""
    (path,) = deduper.folder.glob("sandbox-*.medes")
    deduper.use_base(native.Slab.open(str(deduper.folder / "base.slab")))
    live = deduper.server.adopt(
        native.SandboxFile.open(str(path)), deduper.bases(), touches_per_s_max=TOUCHES_PER_S_MAX
    )
    result, notes = live.reclaim()
    print("survived", result, notes, flush=True)


def main() -> None:
    pid, folder, until = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    deduper = Deduper(folder)
    if until == "loop":
        loop(deduper, pid)
    if until == "reclaim":
        reclaim(deduper)
        return
    live = deduper.dedup([pid])
    print("dormant", flush=True)
    if until == "restore":
        working_set = b""
        live.restore(working_set=working_set)
        live.wait_complete(30)
    if until == "linger":  # pages stay missing for some seconds
        live.restore(background_bytes_per_s=1 << 20)
        print("restoring", flush=True)
        time.sleep(30)
    print("survived", flush=True)


if __name__ == "__main__":
    main()
