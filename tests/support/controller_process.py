"""`medes controller` as a real process."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

from medes.certs.folder import VARIABLE

PREFIX = "medes controller listening on "


class ControllerProcess:
    """Started on construction; `address` is where it listens."""

    def __init__(
        self,
        *arguments: str,
        listen: str = "127.0.0.1:0",
        program: tuple[str, ...] = ("medes", "controller"),
        python: str = sys.executable,
    ) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MEDES_") or k == VARIABLE}
        self.process = subprocess.Popen(
            [python, "-m", *program, "--listen", listen, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.startswith(PREFIX):
            self.process.kill()
            raise AssertionError(f"no address but {line!r}: {self.process.communicate()[1]}")
        self.address = line.removeprefix(PREFIX).strip()

    def end(self, number: int | None = signal.SIGTERM) -> tuple[int, str]:
        """(exit status, what it logged); idempotent. None: waits without a signal."""
        if number is not None and self.process.poll() is None:
            self.process.send_signal(number)
        try:
            _, err = self.process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            _, err = self.process.communicate()
            raise AssertionError(f"the controller did not end: {err}") from None
        except ValueError:  # already read
            err = ""
        return self.process.returncode, err


@contextlib.contextmanager
def controller(*arguments: str, listen: str = "127.0.0.1:0") -> Iterator[ControllerProcess]:
    process = ControllerProcess(*arguments, listen=listen)
    try:
        yield process
    finally:
        process.end(signal.SIGKILL)
