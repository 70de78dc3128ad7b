"""A real controller process and agents as it sees them: leases, kill -9 and restart, the end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from medes.config import ControllerSettings
from medes.controller.api import servicer
from medes.controller.process import Controller
from medes.controller.registry.store import Found
from medes.errors import BusyError, ControllerUnreachableError, IoError, StoreUnreachableError
from medes.types import FunctionUsage, SandboxRecord, SandboxState
from tests.support.controller_process import ControllerProcess, controller
from tests.support.fake_node import FakeNode
from tests.support.redis_server import redis_server
from tests.support.store import ModelStore

FAST = ("--heartbeat-interval-ms", "50", "--lease-ms", "1500")


async def until(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    for _ in range(400):
        if await condition():
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"never: {what}")


async def test_agents_announce_again_after_kill_and_restart(tmp_path: Path) -> None:
    """kill -9 of the controller costs nothing: both nodes bring their bases and sandboxes back on their own."""
    address = f"unix:{tmp_path}/controller.sock"
    first = ControllerProcess(*FAST, listen=address)
    nodes = [FakeNode("n1", address), FakeNode("n2", address)]
    try:
        for i, node in enumerate(nodes, 1):
            node.bases[i] = 20
            node.sandboxes["s"] = SandboxRecord(f"s{i}", "", "f", "d", SandboxState.DEDUP, 100, 10)
            await node.join()
            node.keep_beating()
        answer = await nodes[0].lookup(2, 20)
        assert [(b.base_id, b.holders, b.node_id) for b in answer.bases] == [(2, ["n2"], "n2")]
        assert [h.node_id for h in answer.holders] == ["n2"]

        assert first.end(signal.SIGKILL)[0] == -signal.SIGKILL
        with pytest.raises(ControllerUnreachableError):
            await nodes[0].lookup(2, 20)
        incarnation = nodes[0].announced_to
        second = ControllerProcess(*FAST, listen=address)  # takes over the socket file the dead one left
        try:

            async def known() -> bool:
                try:
                    return (await nodes[0].client.statistics()).bases == 2
                except ControllerUnreachableError:
                    return False

            await until(known, "both bases are back")
            assert [b.base_id for b in (await nodes[1].lookup(1, 20)).bases] == [1]

            async def listed() -> bool:
                return [s.sandbox_id for s in await nodes[0].client.sandboxes()] == ["s1", "s2"]

            await until(listed, "both sandboxes are listed")
            assert nodes[0].announced_to != incarnation
        finally:
            code, log = second.end()
            assert (code, "controller stops" in log) == (0, True), log
        assert not (tmp_path / "controller.sock").exists()
    finally:
        for node in nodes:
            await node.close()
        first.end(signal.SIGKILL)


async def test_a_silent_nodes_bases_leave_the_registry() -> None:
    with controller(*FAST) as process:
        quiet, alive = FakeNode("quiet", process.address), FakeNode("alive", process.address)
        for i, node in enumerate((quiet, alive), 1):
            node.bases[i] = 5
            await node.join()
        alive.keep_beating()

        async def gone() -> bool:
            return [b.base_id for b in (await alive.lookup(1, 5)).bases] == []

        await until(gone, "the silent node's base is gone")
        assert [b.base_id for b in (await alive.lookup(2, 5)).bases] == [2]
        states = {n.endpoints.node_id: n.alive for n in await alive.observer.nodes()}
        assert states == {"quiet": False, "alive": True}
        assert await quiet.beat()  # it was not dead after all, and brings its base back
        assert [b.base_id for b in (await alive.lookup(1, 5)).bases] == [1]
        await quiet.close()
        await alive.close()


class SlowStore(ModelStore):
    """A lookup that lasts until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.go_on = threading.Event(), threading.Event()

    def lookup(self, domain: str, hashes: bytes, samples_per_page: int) -> Found:
        self.entered.set()
        assert self.go_on.wait(30)
        return super().lookup(domain, hashes, samples_per_page)


async def test_a_graceful_end_answers_calls_under_way(tmp_path: Path) -> None:
    store = SlowStore()
    running = Controller(ControllerSettings(listen=f"unix:{tmp_path}/c.sock"), store=store)
    await running.start()
    node = FakeNode("n", running.address)
    node.bases[1] = 3
    await node.join()
    call = asyncio.create_task(node.lookup(1, 3))
    assert await asyncio.to_thread(store.entered.wait, 30)
    stop = asyncio.create_task(running.stop())
    await asyncio.sleep(0.1)
    assert not stop.done() and not store.closed
    store.go_on.set()
    assert [b.base_id for b in (await call).bases] == [1]
    await stop
    assert store.closed
    with pytest.raises(ControllerUnreachableError):
        await node.lookup(1, 3)
    await running.stop()
    await node.close()


async def test_a_full_queue_refuses_and_recovers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servicer, "REGISTRY_CALLS_QUEUED_MAX", 1)
    store = SlowStore()
    async with Controller(ControllerSettings(listen=f"unix:{tmp_path}/c.sock"), store=store) as running:
        node = FakeNode("n", running.address)
        call = asyncio.create_task(node.lookup(1, 3))
        assert await asyncio.to_thread(store.entered.wait, 30)
        with pytest.raises(BusyError) as caught:
            await node.lookup(1, 3)
        assert caught.value.transient
        store.go_on.set()
        await call
        assert (await node.lookup(1, 3)).bases[:] == []
        await node.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_it_cleanly(number: int) -> None:
    with controller() as process:
        code, log = process.end(number)
    assert code == 0
    assert "Traceback" not in log


async def test_a_registry_in_redis_outlives_its_controller_but_not_its_nodes(tmp_path: Path) -> None:
    with redis_server(tmp_path) as url:
        with controller("--store", url, *FAST) as first:
            node = FakeNode("n1", first.address)
            await node.join()
            await node.publish(1, 20)
            asker = FakeNode("asker", first.address)
            assert [b.base_id for b in (await asker.lookup(1, 20)).bases] == [1]
            await asker.close()
            await node.close()  # from now on it is silent
            first.end(signal.SIGKILL)
        with controller("--store", url, *FAST) as second:
            asker = FakeNode("asker", second.address)

            async def gone() -> bool:
                return (await asker.lookup(1, 20)).bases[:] == [] and (
                    await asker.observer.statistics()
                ).bases == 0

            await until(gone, "the base of a node that never came back has left Redis")
            await asker.close()


def test_a_store_that_cannot_be_had_ends_the_controller(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "medes",
            "controller",
            "--listen",
            "127.0.0.1:0",
            "--store",
            f"unix://{tmp_path}/no",
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == StoreUnreachableError.exit_code
    assert "Redis does not answer" in done.stderr
    assert "Traceback" not in done.stderr


async def test_metrics_and_top() -> None:
    with controller("--metrics-address", "127.0.0.1:0", "--log-json", *FAST) as process:
        node = FakeNode("n1", process.address)
        node.bases[1] = 7
        node.sandboxes["s"] = SandboxRecord("s", "", "f", "d", SandboxState.DEDUP, 100, 10)
        node.functions = (FunctionUsage("f", "tenant-a", 1, 1, 100, 10, 30, 60),)
        await node.join()
        await node.beat()
        node.keep_beating()
        await node.lookup(1, 7)
        command = [sys.executable, "-m", "medes", "top", "--controller", process.address]
        done = await asyncio.to_thread(
            subprocess.run, [*command, "--json"], capture_output=True, text=True, timeout=60, check=True
        )
        document = json.loads(done.stdout)
        assert document["nodes"][0]["endpoints"]["node_id"] == "n1"
        assert document["functions"] == [
            {
                "function": "f",
                "sandboxes": 1,
                "states": {"dedup": 1},
                "bases": 0,
                "warm_bytes": 100,
                "kept_bytes": 10,
                "base_share_bytes": 30,
                "saved_bytes": 60,
                "present_bytes": 0,
                "tick_bytes": 0,
                "touched_bytes": 0,
                "mean_saved_bytes": None,  # an older node does not tell
                "recent_saved_bytes": None,
                "saved_ratio": 0.6,
            }
        ]
        assert (document["controller"]["bases"], document["controller"]["lookup_pages"]) == (1, 7)
        assert document["controller"]["lookup_us_p50"] > 0
        done = await asyncio.to_thread(
            subprocess.run, [*command, "--once"], capture_output=True, text=True, timeout=60, check=True
        )
        assert "n1" in done.stdout and "60.0%" in done.stdout and "tenant-a" in done.stdout
        await node.close()
        _, log = await asyncio.to_thread(process.end)
        rows = [json.loads(line) for line in log.splitlines()]
        where = next(r["metrics"] for r in rows if r["message"] == "controller listens")
        assert where.startswith("127.0.0.1:")


def test_top_outlasts_a_controller_restart_and_ends_with_ctrl_c(tmp_path: Path) -> None:
    """On a terminal (a pty), with the controller going away and coming back under it."""
    address = f"unix:{tmp_path}/c.sock"
    screen, terminal = os.openpty()
    with controller(listen=address) as first:
        top = subprocess.Popen(
            [sys.executable, "-m", "medes", "top", "--controller", address, "--interval-s", "0.2"],
            stdout=terminal,
            stderr=terminal,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "150"},
            # A shell that runs the tests in the background has them ignore SIGINT, and so would what they start.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        os.close(terminal)
        seen = b""

        def wait_for(text: bytes) -> None:
            nonlocal seen
            deadline_s = time.monotonic() + 30
            while text not in seen:
                ready, _, _ = select.select([screen], [], [], max(0.0, deadline_s - time.monotonic()))
                assert ready, f"{text!r} not in {seen[-2000:]!r}"
                seen += os.read(screen, 65536)
            seen = b""

        try:
            wait_for(b"registry: 0 bases")
            first.end(signal.SIGKILL)
            wait_for(b"waiting for the controller")
            with controller(listen=address):
                wait_for(b"registry: 0 bases")
                # A terminal that nobody reads is soon full, and then top waits in its write.
                threading.Thread(target=_read_to_the_end, args=(screen,), daemon=True).start()
                top.send_signal(signal.SIGINT)
                assert top.wait(30) == 130
        finally:
            top.kill()
            top.wait(30)
            os.close(screen)


def _read_to_the_end(descriptor: int) -> None:
    with contextlib.suppress(OSError):  # a terminal ends with EIO
        while os.read(descriptor, 65536):
            pass


async def test_metrics_are_scraped_while_it_runs(unused_tcp_port: int) -> None:
    with controller("--metrics-address", f"127.0.0.1:{unused_tcp_port}") as process:
        node = FakeNode("n1", process.address)
        node.bases[1] = 7
        await node.join()

        def scrape() -> str:
            with urllib.request.urlopen(f"http://127.0.0.1:{unused_tcp_port}/metrics", timeout=10) as answer:
                return str(answer.read().decode())

        text = await asyncio.to_thread(scrape)
        assert "medes_controller_nodes_alive 1.0" in text
        assert "medes_controller_base_pages 7.0" in text
        assert 'medes_rpc_calls_total{method="JoinNode",status="OK"} 1.0' in text
        await node.close()


def test_a_second_controller_on_the_address_is_refused() -> None:
    with controller() as process:
        done = subprocess.run(
            [sys.executable, "-m", "medes", "controller", "--listen", process.address],
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == IoError.exit_code
    assert "cannot listen there" in done.stderr
    assert "Traceback" not in done.stderr
