"""Starts the process of an instance. Blocking and asyncio callers share this."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from medes.errors import FunctionError
from medes.faas.manifest import FunctionSpec

LOG_TAIL_BYTES = 4096
# An instance has a share of a core, as on AWS Lambda: thread pools as wide as the machine only cost memory.
SINGLE_THREADED = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
# Hash randomisation stays on (and ASLR with it): sandboxes must be as unlike each other as in production.
REMOVED_VARIABLES = ("PYTHONHASHSEED", "PYTHONSTARTUP")


@dataclass
class Spawned:
    """A started instance: its process, the host's end of its socket, and its log."""

    instance_id: str
    process: subprocess.Popen[bytes]
    sock: socket.socket
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
        self.sock.close()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def spawn(spec: FunctionSpec, instance_id: str, log_path: Path | None = None) -> Spawned:
    """Starts an instance in a session (and process group) of its own; it loads the function by itself and says
    so in its first frame. stdout and stderr go to log_path, or nowhere. Raises FunctionError."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    identity = {
        "fd": theirs.fileno(),
        "name": spec.name,
        "instance": instance_id,
        "handler": spec.handler,
        "folder": str(spec.folder),
        "tenant": spec.tenant,
        "memory_mb": spec.memory_mb,
    }
    environment = {**os.environ, **SINGLE_THREADED, **spec.env}
    for name in REMOVED_VARIABLES:
        environment.pop(name, None)
    command = [sys.executable, "-P", "-m", "medes.faas.instance", json.dumps(identity)]
    try:
        with (
            theirs,
            log_path.open("wb") if log_path else contextlib.nullcontext(subprocess.DEVNULL) as output,
        ):
            process = subprocess.Popen(
                command,
                cwd=spec.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
    except OSError as error:
        ours.close()
        raise FunctionError(f"cannot start an instance: {error}", object=spec.name) from error
    return Spawned(instance_id, process, ours, log_path)
