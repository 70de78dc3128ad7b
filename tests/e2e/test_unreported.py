"""A runtime that calls nothing but Register: its sandbox is idle when it does nothing."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Callable

import pytest

from medes.drivers.process.traffic import tcp_connections
from medes.types import SandboxState as S
from tests.support.cluster import Cluster, wait_until
from tests.support.live import Program

pytestmark = pytest.mark.live
MakeCluster = Callable[..., Cluster]
# Works until a line comes, then waits.
WORKER = """
import sys, threading, time
kept = [str(i) * 10 for i in range(100000)]
busy = True
def work():
    while busy:
        sum(map(len, kept))
threading.Thread(target=work, daemon=True).start()
print("ready", flush=True)
for number, line in enumerate(sys.stdin):
    busy = False
    print(number, len(kept), flush=True)
"""
# Sends a little at a time to whoever is connected, until a line comes. Answers each line as well.
SENDER = """
import socket, sys, threading, time
kept = [str(i) * 10 for i in range(100000)]
server = socket.create_server(("127.0.0.1", 0))
sending = True
def send():
    connection, _ = server.accept()
    while sending:
        connection.sendall(bytes(1 << 16))
        time.sleep(0.02)
    while connection.recv(16):
        connection.sendall(b"alive")
threading.Thread(target=send, daemon=True).start()
print("ready", flush=True)
for number, line in enumerate(sys.stdin):
    if line == "rest\\n":
        sending = False
    print(number, server.getsockname()[1] if line == "port\\n" else len(kept), flush=True)
"""


def test_who_works_is_not_idle(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(nodes=1, controller=False, idle_period_s=6)
    with cluster.agents[0].client() as client, Program([sys.executable, "-c", WORKER]) as program:
        begin_s = time.monotonic()
        client.register("worker", pids=[program.pid], sandbox_id="a")
        while time.monotonic() < begin_s + 13:  # more than twice its idle period
            assert client.get("a").state is S.WARM
            time.sleep(0.5)
        assert client.get("a").dedup_count == 0
        assert program.ask("rest") == "100000"
        wait_until(lambda: client.get("a").state is S.DEDUP, "idle at last", 60.0)
        assert program.ask("again") == "100000"


def test_who_sends_is_not_idle_and_who_is_probed_is(make_cluster: MakeCluster) -> None:
    """By bytes alone: no processor time makes it busy here."""
    cluster = make_cluster(nodes=1, controller=False, idle_period_s=10, busy_cpu_ratio=1000.0)
    with cluster.agents[0].client() as client, Program([sys.executable, "-c", SENDER]) as program:
        with socket.create_connection(("127.0.0.1", int(program.ask("port")))) as connection:
            if not tcp_connections():
                pytest.skip("the kernel tells nothing of TCP sockets (CONFIG_INET_TCP_DIAG)")
            reader = threading.Thread(target=_read_all, args=(connection,))
            reader.start()
            begin_s = time.monotonic()
            client.register("sender", pids=[program.pid], sandbox_id="a")
            while time.monotonic() < begin_s + 21:  # more than twice its idle period
                assert client.get("a").dedup_count == 0
                time.sleep(0.5)
            assert program.ask("rest") == "100000"

            def probed() -> bool:
                connection.sendall(b"probe")
                time.sleep(0.5)
                return client.get("a").dedup_count > 0

            wait_until(probed, "idle while it is probed", 60.0)
            connection.shutdown(socket.SHUT_WR)
            reader.join()
        assert program.ask("again") == "100000"


def _read_all(connection: socket.socket) -> None:
    while connection.recv(1 << 16):
        pass
