"""perftest's `ib_read_bw` on the device that `rdma` was measured on: a reference that shares no code with ours."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from typing import Any

from medes import native

PROGRAM = "ib_read_bw"
READ_BYTES_MAX = 256 * 1024  # as RdmaReader cuts and merges reads
READS_IN_FLIGHT_MAX = 128
ITERATIONS = 1000
SECONDS_MAX = 120.0
# `#bytes #iterations BW peak[MB/sec] BW average[MB/sec] MsgRate[Mpps]`
_RESULT = re.compile(r"^\s*(\d+)\s+(\d+)\s+([\d.]+)\s+([\d.]+)\s+([\d.]+)\s*$", re.MULTILINE)


def sizes_of(pages: int, depth: int) -> tuple[int, int]:
    """Bytes of one READ and how many are in flight when `depth` batches of contiguous pages are read."""
    batch_bytes = pages * native.PAGE_BYTES
    read_bytes = min(batch_bytes, READ_BYTES_MAX)
    return read_bytes, min(READS_IN_FLIGHT_MAX, depth * -(-batch_bytes // read_bytes))


def average_bytes_per_s(output: str) -> float | None:
    """From the output of the client, whose MB are 2^20 bytes. None without a result."""
    found = _RESULT.search(output)
    return float(found[4]) * 2**20 if found else None


def measure(batches: Sequence[int], depth: int) -> Iterator[dict[str, Any]]:
    """One line a distinct (read size, reads in flight), or one that says why there is none. Needs an RDMA device."""
    if shutil.which(PROGRAM) is None:
        yield skipped(f"{PROGRAM} is not installed (apt-get install perftest)")
        return
    context = native.RdmaContext(buffer_bytes=READ_BYTES_MAX)
    device, port = context.device, context.port
    gid = context.gid
    context.close()
    index = next(
        (d["gid_index"] for d in native.rdma_devices() if d["name"] == device and d["gid"] == gid), 0
    )
    for read_bytes, in_flight in dict.fromkeys(sizes_of(pages, depth) for pages in batches):
        flags = [
            "-d",
            device,
            "-i",
            str(port),
            "-x",
            str(index),
            "-s",
            str(read_bytes),
            "-n",
            str(ITERATIONS),
        ]
        flags += ["-t", str(in_flight), "-o", str(min(in_flight, _outstanding(device))), "-F"]
        try:
            speed = average_bytes_per_s(_run(flags))
        except (OSError, subprocess.SubprocessError) as error:
            yield skipped(f"{PROGRAM} {' '.join(flags)}: {error}")
            continue
        if speed is None:
            yield skipped(f"{PROGRAM} {' '.join(flags)} gave no figure")
            continue
        yield {
            "benchmark": "transport_reference",
            "transport": "rdma",
            "reference": PROGRAM,
            "device": device,
            "read_bytes": read_bytes,
            "reads_in_flight": in_flight,
            "gb_per_s": round(speed / 1e9, 3),
        }


def skipped(why: str) -> dict[str, Any]:
    """The line that stands where a figure would."""
    return {"benchmark": "transport_reference", "transport": "rdma", "reference": PROGRAM, "skipped": why}


def _outstanding(device: str) -> int:
    """READs that the adapter starts at a time."""
    found = [int(str(d["max_rd_atomic"])) for d in native.rdma_devices() if d["name"] == device]
    return max(1, *found) if found else 1


def _run(flags: list[str]) -> str:
    """Server and client on this host, which exchange queue pair numbers over loopback. Raises SubprocessError."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [PROGRAM, "-p", port, *flags]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            deadline_s = time.monotonic() + SECONDS_MAX
            while True:
                client = subprocess.run(
                    [*command, "127.0.0.1"], capture_output=True, text=True, timeout=SECONDS_MAX, check=False
                )
                if client.returncode == 0:
                    return client.stdout
                # The server may not listen yet; nothing else says when it does.
                if server.poll() is not None or time.monotonic() > deadline_s:
                    raise subprocess.SubprocessError((client.stderr or client.stdout).strip()[-300:])
                time.sleep(0.2)
        finally:
            with contextlib.suppress(OSError):
                server.kill()
