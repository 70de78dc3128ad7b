"""What an operator can do today with an idle sandbox: CRIU dump and restore, or push its pages out to zram.

Each baseline either measures, checking the function's answers as the restore benchmark does, or says why it cannot.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from medes import native
from medes.bench.workloads import percentile
from medes.errors import MedesError
from medes.faas import wire
from medes.faas.manifest import FunctionSpec
from medes.faas.spawn import REMOVED_VARIABLES, SINGLE_THREADED
from medes.faas.standalone import running_instances

CRIU_VERSION_MIN = (4, 2)
STEP_TIMEOUT_S = 60.0
WARM_REQUESTS = 4
MADV_PAGEOUT = 21
SYS_PROCESS_MADVISE = 440
PR_SET_CHILD_SUBREAPER = 36
IOVEC_MAX = 1024


class Skipped(Exception):
    """Why a baseline cannot run here."""


def run(name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A baseline's figures, their names prefixed with its name, or `<name>_skipped` with the reason."""
    try:
        figures = measure()
    except (Skipped, MedesError, OSError, subprocess.SubprocessError, wire.FrameError) as error:
        return {f"{name}_skipped": str(error)[:300]}
    return {f"{name}_{key}": value for key, value in figures.items()}


# --- CRIU --------------------------------------------------------------------------------------------------
def find_criu() -> str:
    """A CRIU that can run on this kernel: MEDES_CRIU, build/criu/criu of the source tree, or that in PATH.
    Raises Skipped."""
    built = Path(__file__).resolve().parents[2] / "build/criu/criu"
    for candidate in (os.environ.get("MEDES_CRIU"), str(built), shutil.which("criu"), "/usr/sbin/criu"):
        if not candidate or not os.access(candidate, os.X_OK):
            continue
        output = subprocess.run([candidate, "--version"], capture_output=True, text=True, timeout=10).stdout
        found = re.search(r"Version: (\d+)\.(\d+)", output)
        if found and (int(found[1]), int(found[2])) >= CRIU_VERSION_MIN:
            return candidate
    raise Skipped("no CRIU 4.2 or newer here; bash deploy/build-criu.sh builds one")


def criu(spec: FunctionSpec, rounds: int) -> dict[str, Any]:
    """Dumps and restores one warm instance `rounds` times, images in shared memory. First response: from the start
    of `criu restore` to the answer. Raises Skipped."""
    program = find_criu()
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
        "dump_ms_p50": percentile(dump_ms, 50),
        "first_response_ms_p50": percentile(first_ms, 50),
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


# --- zram --------------------------------------------------------------------------------------------------
def zram_device() -> str:
    """The zram device that is swapped to. Raises Skipped: setting one up is the operator's decision."""
    for line in Path("/proc/swaps").read_text().splitlines()[1:]:
        name = Path(line.split()[0]).name
        if name.startswith("zram"):
            return name
    raise Skipped("no swap on zram is active here (modprobe zram; zramctl; mkswap; swapon)")


def zram(spec: FunctionSpec, rounds: int) -> dict[str, Any]:
    """Pushes one warm instance's private anonymous memory out with MADV_PAGEOUT; first response: the next answer.
    Raises Skipped."""
    device = zram_device()
    first_ms, kept = [], []
    with running_instances(spec, 1, seed=3, warm_requests=WARM_REQUESTS) as (instance,):
        expected = instance.invoke()
        for _ in range(rounds):
            before = _zram_bytes(device)
            pids = native.process_tree([instance.pid])
            for pid in pids:
                _page_out(pid)
            kept.append(max(0, _zram_bytes(device) - before) + native.private_bytes(pids))
            begun = time.perf_counter()
            answer = instance.invoke()
            first_ms.append((time.perf_counter() - begun) * 1000)
            if spec.idempotent and answer != expected:
                raise Skipped("the function answered otherwise after its pages came back")
    return {"first_response_ms_p50": percentile(first_ms, 50), "kept_bytes": sorted(kept)[len(kept) // 2]}


def _zram_bytes(device: str) -> int:
    """Memory the device uses for what it holds."""
    return int(Path(f"/sys/block/{device}/mm_stat").read_text().split()[2])


def _page_out(pid: int) -> None:
    ranges = []
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        is_anonymous = len(fields) < 6 or fields[5] in ("[heap]", "[stack]") or fields[5].startswith("[anon")
        if is_anonymous and fields[1].startswith("rw-p"):
            begin, end = (int(text, 16) for text in fields[0].split("-"))
            ranges.append((begin, end - begin))
    libc = ctypes.CDLL(None, use_errno=True)
    pidfd = os.pidfd_open(pid)
    try:
        for at in range(0, len(ranges), IOVEC_MAX):
            part = ranges[at : at + IOVEC_MAX]
            vector = (ctypes.c_size_t * (2 * len(part)))(*(number for pair in part for number in pair))
            arguments = (pidfd, vector, ctypes.c_size_t(len(part)), MADV_PAGEOUT, 0)
            if libc.syscall(SYS_PROCESS_MADVISE, *arguments) < 0:
                raise Skipped(f"process_madvise: {os.strerror(ctypes.get_errno())}")
    finally:
        os.close(pidfd)
