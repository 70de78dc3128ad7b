"""Starts the process of an instance, whatever its contract. Blocking and asyncio callers share this."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

from medes.errors import FunctionError
from medes.runtimes.contracts.contract import Command
from medes.runtimes.manifest import FunctionSpec

LOG_TAIL_BYTES = 4096
# An instance has a share of a core, as on AWS Lambda: thread pools as wide as the machine only cost memory.
SINGLE_THREADED = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
# Hash randomisation stays on (and ASLR with it): sandboxes must be as unlike each other as in production.
REMOVED_VARIABLES = ("PYTHONHASHSEED", "PYTHONSTARTUP")


@dataclass
class Spawned:
    """A started instance: its process and its log."""

    process: subprocess.Popen[bytes]
    log_path: Path | None

    @property
    def pid(self) -> int:
        return self.process.pid

    def log_tail(self) -> str:
        """The end of what the instance wrote to stdout and stderr."""
        if self.log_path is None:
            return ""
        with contextlib.suppress(OSError), self.log_path.open("rb") as log:
            log.seek(max(0, os.fstat(log.fileno()).st_size - LOG_TAIL_BYTES))
            return log.read(LOG_TAIL_BYTES).decode(errors="replace")
        return ""

    def kill(self) -> None:
        """Ends the instance and every process it started, and reaps it. May be called again."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def spawn(command: Command, spec: FunctionSpec, log_path: Path | None = None) -> Spawned:
    """Starts an instance in a session (and process group) of its own. stdout and stderr go to log_path, or nowhere. The
    command's files are closed, also where it raises FunctionError."""
    environment = {**os.environ, **SINGLE_THREADED, **command.environment, **spec.env}
    for name in REMOVED_VARIABLES:
        environment.pop(name, None)
    try:
        with log_path.open("wb") if log_path else contextlib.nullcontext(subprocess.DEVNULL) as output:
            process = subprocess.Popen(
                command.arguments,
                cwd=spec.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=command.files,
                start_new_session=True,
            )
    except (OSError, ValueError) as error:
        raise FunctionError(f"cannot start an instance: {error}", object=spec.name) from error
    finally:
        for file in command.files:
            os.close(file)
    return Spawned(process, log_path)
