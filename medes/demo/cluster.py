"""A controller and agents as separate processes on this machine, gone without a trace when the block is left.

Everything lies in one temporary folder and one shared-memory folder per node, named after it. A janitor process ends and removes
it all even where this process is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medes.client import AsyncControllerClient, AsyncMedesClient
from medes.errors import BY_CODE, DeadlineExceededError, IoError, MedesError
from medes.runtimes.host.control import ControlServer
from medes.runtimes.host.host import FunctionHost
from medes.runtimes.host.janitor import JanitorClient

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 8.0
POLL_S = 0.02
NODES_MAX = 64
SHM_ROOT = Path("/dev/shm")
_BY_EXIT_CODE = {kind.exit_code: kind for kind in BY_CODE.values()}


@dataclass
class Cluster:
    """A running cluster and the function host on it."""

    host: FunctionHost
    folder: Path
    agents: list[str]
    controller: str
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)


@contextlib.asynccontextmanager
async def local_cluster(
    nodes: int,
    transport: str = "auto",
    driver: str = "",
    agent_options: Sequence[str] = (),
    node_options: Mapping[str, Sequence[str]] | None = None,
) -> AsyncIterator[Cluster]:
    """Starts a controller, `nodes` agents and a function host. The agents act on requests only (their timers are
    off), so that what is measured is what was asked for. `driver` is how memory is taken, empty for their choice;
    `node_options` are those of single nodes, which are node1, node2, and so on.

    Raises io or deadline_exceeded, with the end of the log, when a daemon does not come up.
    """
    janitor = JanitorClient()
    folder = Path(tempfile.mkdtemp(prefix="medes-cluster-"))
    janitor.folder(folder)
    daemons: dict[str, subprocess.Popen[bytes]] = {}
    try:
        controller = f"unix:{folder}/controller.sock"
        _start(janitor, daemons, folder, "controller", ["controller", "--listen", controller])
        await _wait_for_controller(controller, daemons["controller"], folder)
        agents = []
        for number in range(1, nodes + 1):
            name = f"node{number}"
            shm = SHM_ROOT / f"{folder.name}-{name}"
            janitor.folder(shm)
            options = _agent_options(folder, name, shm, controller, transport)
            options += [*agent_options, *(node_options or {}).get(name, ())]
            _start(janitor, daemons, folder, name, ["agent", *options])
            agents.append(f"unix:{folder}/{name}.sock")
        for number, address in enumerate(agents, 1):
            await _wait_for_agent(address, daemons[f"node{number}"], folder, f"node{number}")
        control_path = folder / "host.sock"
        host = FunctionHost(
            agents, folder, hook_address=f"unix:{control_path}", driver=driver, on_process=janitor.process
        )
        server = ControlServer(host, control_path)
        try:
            async with host:
                await server.start()
                yield Cluster(host, folder, agents, controller, daemons)
        finally:
            await server.close()
    finally:
        _stop(daemons)
        janitor.close()


def _agent_options(folder: Path, name: str, shm: Path, controller: str, transport: str) -> list[str]:
    return [
        *("--node-id", name),
        *("--controllers", controller),
        *("--listen", f"unix:{folder}/{name}.sock"),
        *("--peer-address", "127.0.0.1:0"),
        *("--state-dir", f"{folder}/{name}"),
        *("--shm-dir", str(shm)),
        *("--cluster-dir", f"{folder}/cluster"),
        *("--transport", transport),
        *("--idle-period-s", "86400"),
        *("--keep-alive-period-s", "172800"),
        *("--keep-dedup-period-s", "172800"),
    ]


def _start(
    janitor: JanitorClient,
    daemons: dict[str, subprocess.Popen[bytes]],
    folder: Path,
    name: str,
    arguments: list[str],
) -> None:
    """A daemon in a session of its own: Ctrl-C at the terminal reaches this process only, which ends the rest."""
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "medes", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    daemons[name] = process
    janitor.process(process.pid)


async def _wait_for_controller(address: str, process: subprocess.Popen[bytes], folder: Path) -> None:
    async with AsyncControllerClient(address) as client:
        await _until_answers(client.nodes, process, folder, "controller")


async def _wait_for_agent(address: str, process: subprocess.Popen[bytes], folder: Path, name: str) -> None:
    async with AsyncMedesClient(address) as client:

        async def connected() -> object:
            return (await client.node()).controller_connected

        await _until_answers(connected, process, folder, name)


async def _until_answers(call: object, process: subprocess.Popen[bytes], folder: Path, name: str) -> None:
    """Until the call answers something other than False."""
    assert callable(call)
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while True:
        with contextlib.suppress(MedesError):
            if await call() is not False:
                return
        tail = _tail(folder / f"{name}.log").strip()
        if process.poll() is not None:
            # A daemon that refuses its settings says so with its exit code.
            kind = _BY_EXIT_CODE.get(process.returncode, IoError)
            raise kind(f"ended with exit code {process.returncode}: {tail[-800:]}", object=name)
        if time.monotonic() > deadline_s:
            raise DeadlineExceededError(f"not up after {START_TIMEOUT_S:g} s: {tail[-800:]}", object=name)
        await asyncio.sleep(POLL_S)


def _stop(daemons: dict[str, subprocess.Popen[bytes]]) -> None:
    """Agents before the controller, gently, then for good. Blocks."""
    for process in reversed(daemons.values()):
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
    deadline_s = time.monotonic() + STOP_TIMEOUT_S
    for process in daemons.values():
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline_s - time.monotonic()))
            continue
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _tail(path: Path, size_bytes: int = 4096) -> str:
    with contextlib.suppress(OSError), path.open("rb") as log:
        log.seek(max(0, path.stat().st_size - size_bytes))
        return log.read().decode(errors="replace")
    return ""
