"""Baseline of the restore benchmark: CRIU dumps a warm instance and restores it, images in shared memory."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medes.bench.baselines import STEP_TIMEOUT_S, WARM_REQUESTS, Skipped
from medes.bench.criu_program import FIX, find_criu
from medes.quantiles import quantile_or_none
from medes.runtimes.host.spawn import REMOVED_VARIABLES, SINGLE_THREADED
from medes.runtimes.instance import wire
from medes.runtimes.manifest import CONTRACT_DEFAULT, FunctionSpec

PR_SET_CHILD_SUBREAPER = 36


def measure(spec: FunctionSpec, rounds: int) -> dict[str, Any]:
    """Dumps and restores one warm instance `rounds` times, images in shared memory. First response: from the start
    of `criu restore` to the answer. Raises Skipped."""
    if spec.contract != CONTRACT_DEFAULT:
        raise Skipped(f"a function of the contract {spec.contract!r} cannot be put behind a port")
    program, why = find_criu()
    if program is None:
        raise Skipped(f"{why}; {FIX}")
    if os.geteuid() != 0:
        raise Skipped("CRIU needs root")
    dump_ms, first_ms, image_bytes = [], [], 0
    with _adopting_orphans(), tempfile.TemporaryDirectory(prefix="medes-criu-", dir="/dev/shm") as folder:
        process, port = _start_listening(spec, Path(folder))
        pid = process.pid
        try:
            for number in range(WARM_REQUESTS):
                _ask(port, spec, spec.seeded_event(number + 2))
            expected = _ask(port, spec, spec.event)
            for number in range(rounds):
                images = Path(folder) / f"images-{number}"
                images.mkdir()
                begun = time.perf_counter()
                _criu(program, "dump", images, "--tree", str(pid))
                dump_ms.append((time.perf_counter() - begun) * 1000)
                _reap(pid)
                image_bytes = sum(file.stat().st_size for file in images.iterdir())
                begun = time.perf_counter()
                _criu(program, "restore", images, "--restore-detached")
                answer = _ask(port, spec, spec.event)
                first_ms.append((time.perf_counter() - begun) * 1000)
                if spec.idempotent and answer != expected:
                    raise Skipped("the function answered otherwise after CRIU's restore")
                shutil.rmtree(images)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            _reap(pid)
            process.poll()
    return {
        "dump_ms_p50": quantile_or_none(dump_ms, 0.5),
        "first_response_ms_p50": quantile_or_none(first_ms, 0.5),
        "kept_bytes": image_bytes,
    }


def _start_listening(spec: FunctionSpec, folder: Path) -> tuple[subprocess.Popen[bytes], int]:
    identity = {
        "name": spec.name,
        "instance": f"{spec.name}-baseline",
        "handler": spec.handler,
        "folder": str(spec.folder),
        "tenant": spec.tenant,
        "memory_mb": spec.memory_mb,
    }
    environment = {**os.environ, **SINGLE_THREADED, **spec.env}
    for name in REMOVED_VARIABLES:
        environment.pop(name, None)
    output = folder / "port"
    with output.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "medes.bench.listening", json.dumps(identity)],
            cwd=spec.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    deadline_s = time.monotonic() + STEP_TIMEOUT_S
    while not output.read_text().endswith("\n"):
        if process.poll() is not None or time.monotonic() > deadline_s:
            process.kill()
            raise Skipped("the function did not load behind a port")
        time.sleep(0.01)
    return process, int(output.read_text())


def _ask(port: int, spec: FunctionSpec, event: Any) -> Any:
    with socket.create_connection(("127.0.0.1", port), timeout=STEP_TIMEOUT_S) as sock:
        wire.send(sock, {"op": "invoke", "id": "1", "event": event, "timeout_ms": spec.timeout_s * 1000})
        answer = wire.receive(sock)
    if answer is None or "error" in answer:
        raise Skipped(f"the function failed: {answer}")
    return answer["result"]


def _criu(program: str, command: str, images: Path, *options: str) -> None:
    done = subprocess.run(
        [program, command, "--images-dir", str(images), "--log-file", "log", *options],
        capture_output=True,
        text=True,
        timeout=STEP_TIMEOUT_S,
    )
    if done.returncode != 0:
        log = images / "log"
        text = log.read_text(errors="replace") if log.exists() else done.stderr
        reasons = [line for line in text.splitlines() if "Error" in line]
        raise Skipped(f"criu {command} failed: {' | '.join(reasons[-3:]) or text[-200:].strip()}")


def _reap(group: int) -> None:
    """A dumped process tree is dead; its numbers are free for the restore once it is reaped. All of it is this
    process' children: see _adopting_orphans."""
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-group, 0)


@contextlib.contextmanager
def _adopting_orphans() -> Iterator[None]:
    """While it lasts, descendants whose parent ends become children of this process instead of init's, so that
    what CRIU restored can be reaped at once."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    if prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise Skipped(f"prctl: {os.strerror(ctypes.get_errno())}")
    try:
        yield
    finally:
        prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
