"""A throw-away Redis."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.ports import free_port


@contextlib.contextmanager
def redis_server(folder: Path, *, clustered: bool = False) -> Iterator[str]:
    """Yields its URL; skips the test where Redis is not installed. A cluster is one node with all hash slots."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not installed")
    redis = pytest.importorskip("redis", reason="the redis package is not installed")
    arguments = ["--save", "", "--appendonly", "no", "--dir", str(folder), "--daemonize", "no"]
    if clustered:
        port = free_port()
        bus = free_port()
        arguments += [
            "--port",
            str(port),
            "--bind",
            "127.0.0.1",
            "--cluster-enabled",
            "yes",
            "--cluster-port",
            str(bus),
        ]
        url = f"redis://127.0.0.1:{port}"
    else:
        arguments += ["--port", "0", "--unixsocket", str(folder / "redis.sock")]
        url = f"unix://{folder}/redis.sock"
    process = subprocess.Popen([program, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        client = redis.Redis.from_url(url)
        _wait(client.ping)
        if clustered:
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            _wait(lambda: "cluster_state:ok" in str(client.execute_command("CLUSTER", "INFO")))
        client.close()
        yield url
    finally:
        process.terminate()
        process.wait(30)


def _wait(condition: Any) -> None:
    last: Exception | None = None
    for _ in range(200):
        try:
            if condition():
                return
        except Exception as error:
            last = error
        time.sleep(0.05)
    raise AssertionError(f"Redis does not come up: {last}")
