"""An agent of a benchmark's own: a process without controllers, in folders of its own, gone without a trace in the end."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from medes.errors import IoError
from medes.runtimes.host.janitor import JanitorClient

STOP_TIMEOUT_S = 20.0
SHM_ROOT = Path("/dev/shm")


@dataclass(frozen=True)
class RunningAgent:
    """`folder`: removed in the end, for files of the benchmark as well. `janitor`: ends what it is told of once the
    benchmark has ended, even where that was killed."""

    pid: int
    address: str
    folder: Path
    janitor: JanitorClient

    def log_tail(self, chars: int = 800) -> str:
        """The end of what it has logged."""
        return (self.folder / "agent.log").read_text(errors="replace")[-chars:].strip()


@contextlib.contextmanager
def running_agent(**settings: object) -> Iterator[RunningAgent]:
    """An agent that serves; `settings` beside its folders and addresses. Its session is its own, so that a Ctrl-C at the
    terminal reaches the benchmark only. Raises io, with the end of its log, when it does not start."""
    janitor = JanitorClient()
    folder = Path(tempfile.mkdtemp(prefix="medes-bench-"))
    shm = SHM_ROOT / folder.name
    janitor.folder(folder)
    janitor.folder(shm)
    address = f"unix:{folder}/agent.sock"
    options = {
        "node_id": "bench",
        "controllers": "",
        "listen": address,
        "peer_address": "127.0.0.1:0",
        "state_dir": folder / "state",
        "shm_dir": shm,
        "cluster_dir": folder / "cluster",
        **settings,
    }
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MEDES_AGENT_")}
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    try:
        with (folder / "agent.log").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "medes", "agent", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
                start_new_session=True,
            )
        janitor.process(process.pid)
        agent = RunningAgent(process.pid, address, folder, janitor)
        try:
            assert process.stdout is not None
            if not process.stdout.readline():
                raise IoError(f"did not start: {agent.log_tail()}", object="agent")
            yield agent
        finally:
            _stop(process)
    finally:
        janitor.close()


def _stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()
