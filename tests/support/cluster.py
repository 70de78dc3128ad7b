"""A cluster of real processes for tests: one controller and N agents, with folders and ports of their own.

    with Cluster(tmp_path, nodes=2) as cluster:
        client = cluster.agents[0].client()

Agents can be killed and started again under the same identity; everything ends with the `with` block, shared-memory
files included.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from medes.certs.folder import VARIABLE
from medes.certs.sources import TlsSource
from medes.client import ControllerClient, MedesClient
from tests.support.controller_process import ControllerProcess
from tests.support.ports import free_port

READY = "medes agent "
# How an agent is run whose Python never looks for garbage: what is held by a cycle of references is held for good.
WITHOUT_COLLECTOR = ["-c", "import gc; gc.disable(); from medes.cli.main import main; main()"]
# Short enough to notice a killed controller within a test, long enough for a busy two-core machine.
CONTROLLER_FLAGS = ("--heartbeat-interval-ms", "200", "--lease-ms", "4000")


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = 30.0) -> Any:
    """Polls until `condition` is true (its value is returned); fails with `what` after timeout_s."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"not within {timeout_s} s: {what}")


class AgentProcess:
    """`medes agent` as a process; start(), kill() and start() again keep state, shared memory and addresses."""

    def __init__(self, folder: Path, node_id: str, controller: str, **flags: object) -> None:
        self.node_id = node_id
        self.folder = folder
        # A unix socket's path has at most 107 bytes, and pytest's folders are long.
        self.socket = Path(f"/tmp/medes-{secrets.token_hex(6)}.sock")
        self.shm = Path(f"/dev/shm/medes-test-{secrets.token_hex(6)}")
        self.log = folder / f"{node_id}.log"
        self.process: subprocess.Popen[str] | None = None
        self.environment: dict[str, str] = {}
        self.python = sys.executable  # of the installation that is tested
        self.prefix: list[str] = []  # a command that runs the agent, e.g. with fewer rights
        self.program = ["-m", "medes"]
        self._flags: dict[str, object] = {
            "node_id": node_id,
            "controllers": controller,
            "listen": f"unix:{self.socket}",
            "peer_address": f"127.0.0.1:{free_port()}",
            "page_port": free_port(),
            "state_dir": folder / f"state-{node_id}",
            "shm_dir": self.shm,
            "idle_period_s": 3600,
            "keep_alive_period_s": 7200,
            "keep_dedup_period_s": 7200,
            **flags,
        }

    @property
    def address(self) -> str:
        return f"unix:{self.socket}"

    @property
    def state_dir(self) -> Path:
        return Path(str(self._flags["state_dir"]))

    def flag(self, name: str) -> object:
        """A setting as it was given."""
        return self._flags[name]

    def set(self, **flags: object) -> None:
        """Changes settings for the next start."""
        self._flags.update(flags)

    def start(self, *more: str) -> AgentProcess:
        """Starts the process and waits until it serves."""
        assert self.process is None or self.process.poll() is not None
        arguments = [f"--{k.replace('_', '-')}={v}" for k, v in self._flags.items()]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MEDES_") or k == VARIABLE}
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [*self.prefix, self.python, *self.program, "agent", *arguments, *more],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**environment, **self.environment},
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.startswith(READY):
            self.process.stdout.close()
            self.process.wait(10)
            raise AssertionError(f"no agent but {line!r}: {self.log_tail()}")
        return self

    def log_tail(self) -> str:
        return self.log.read_text(errors="replace")[-4000:] if self.log.exists() else ""

    def client(self) -> MedesClient:
        return MedesClient(self.address, timeout_s=60.0)

    def kill(self) -> None:
        """SIGKILL: what the machine does to a daemon at the worst moment."""
        self.end(signal.SIGKILL)

    def end(self, number: int = signal.SIGTERM, timeout_s: float = 30.0) -> int:
        """Sends a signal (unless it has ended) and waits; the exit status."""
        process = self.process
        assert process is not None
        if process.poll() is None:
            process.send_signal(number)
        try:
            status = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
            raise AssertionError(f"{self.node_id} did not end: {self.log_tail()}") from None
        if process.stdout is not None:
            process.stdout.close()
        return status

    def shm_files(self, prefix: str = "") -> list[str]:
        return sorted(p.name for p in self.shm.glob(f"{prefix}*")) if self.shm.is_dir() else []

    def clean(self) -> None:
        """Ends the process and removes what it keeps outside the test's folder."""
        if self.process is not None and self.process.poll() is None:
            with contextlib.suppress(AssertionError):
                self.end(signal.SIGKILL)
        self.socket.unlink(missing_ok=True)
        shutil.rmtree(self.shm, ignore_errors=True)


class Cluster:
    """A controller (unless without) and its agents, started on entry."""

    def __init__(
        self,
        folder: Path,
        *,
        nodes: int = 2,
        controller: bool = True,
        controller_flags: tuple[str, ...] = (),
        controller_program: tuple[str, ...] = ("medes", "controller"),
        node_flags: Mapping[str, Mapping[str, object]] | None = None,
        **flags: object,
    ) -> None:
        """`flags` are settings of every agent, `node_flags` of single ones."""
        self.folder = folder
        self._controller_flags = (*CONTROLLER_FLAGS, *controller_flags)
        self._controller_program = controller_program
        self._listen = f"127.0.0.1:{free_port()}"
        self._with_controller = controller
        self.controller: ControllerProcess | None = None
        self.agents = [
            AgentProcess(
                folder,
                f"n{i}",
                self._listen if controller else "",
                **flags,
                **(node_flags or {}).get(f"n{i}", {}),
            )
            for i in range(nodes)
        ]

    def __enter__(self) -> Cluster:
        try:
            if self._with_controller:
                self.start_controller()
            for agent in self.agents:
                agent.start()
            if self._with_controller:
                self.wait_joined()
        except BaseException:
            self.__exit__()
            raise
        return self

    def start_controller(self) -> None:
        """At the address it had before, if it had one."""
        self.controller = ControllerProcess(
            *self._controller_flags, listen=self._listen, program=self._controller_program
        )

    def kill_controller(self) -> None:
        assert self.controller is not None
        self.controller.end(signal.SIGKILL)

    @contextlib.contextmanager
    def controller_client(self, tls: TlsSource = None) -> Iterator[ControllerClient]:
        with ControllerClient(self._listen, tls=tls) as client:
            yield client

    def wait_joined(self) -> None:
        """Until every running agent has joined and announced what it has."""
        for agent in self.agents:
            if agent.process is not None and agent.process.poll() is None:
                with agent.client() as client:
                    wait_until(lambda c=client: c.node().controller_connected, f"{agent.node_id} joined")

    def __exit__(self, *exc: object) -> None:
        for agent in self.agents:
            agent.clean()
        if self.controller is not None:
            with contextlib.suppress(AssertionError):
                self.controller.end(signal.SIGKILL)
