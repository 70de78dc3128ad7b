"""A dedup op of an agent that has a seccomp filter itself; prints the error.

usage: filtered_agent.py PID FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

from medes import native
from medes.errors import MedesError
from tests.support.live import Deduper
from tests.support.seccomp import Filter


def main() -> None:
    pid, folder = int(sys.argv[1]), Path(sys.argv[2])
    Filter().load()
    print(native.missing_seccomp_right()[0], flush=True)
    deduper = Deduper(folder)
    try:
        deduper.dedup([pid])
    except MedesError as error:
        print(f"{error.code}: {error}", flush=True)
    finally:
        deduper.close()


if __name__ == "__main__":
    main()
