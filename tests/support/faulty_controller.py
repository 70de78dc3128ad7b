"""`medes controller` with one fault: a lookup kills the process, or stops it. Run as a script.

    python -m tests.support.faulty_controller dies|hangs medes-controller-options…

It prints `lookup` when the fault strikes.
"""

from __future__ import annotations

import os
import signal
import sys

from medes.cli.main import main
from medes.controller.api import handlers

SIGNALS = {"dies": signal.SIGKILL, "hangs": signal.SIGSTOP}


def fault(*arguments: object) -> None:
    print("lookup", flush=True)
    os.kill(os.getpid(), SIGNALS[sys.argv[1]])


if __name__ == "__main__":
    handlers.lookup_fingerprints = fault  # type: ignore[assignment]
    main(["controller", *sys.argv[2:]])
