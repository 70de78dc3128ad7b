"""An agent in small, to be killed: dedups a process and restores it. Run by test_live_faults.py.

usage: live_victim.py PID FOLDER {evict|restore|linger}; MEDES_FAULT in the environment says where it dies.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from tests.support.live import Deduper


def main() -> None:
    pid, folder, until = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    deduper = Deduper(folder)
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
