"""Agents inside the test process: real journal, stores, page servers and gRPC; a stand-in for the live driver."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from medes.agent import daemon as daemon_module
from medes.agent.daemon import AgentDaemon
from medes.config import AgentSettings, ControllerSettings
from medes.controller.process import Controller
from medes.drivers.driver import Driver
from medes.drivers.registry import Drivers
from tests.unit.agent.stand_ins import StandInDriver

MakeAgent = Callable[..., Awaitable[AgentDaemon]]


@pytest.fixture
async def controller() -> AsyncIterator[Controller]:
    # A lease that no load of the machine outlasts.
    settings = ControllerSettings(listen="127.0.0.1:0", heartbeat_interval_ms=50, lease_ms=60_000)
    async with Controller(settings) as running:
        yield running


@pytest.fixture
async def make_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[MakeAgent]:
    """make_agent(node, controller_address, **settings) → a started AgentDaemon; its driver is `.driver`."""
    started: list[AgentDaemon] = []
    shm: dict[str, Path] = {}

    async def make(
        node: str = "n0", controller: str = "", driver: Driver | None = None, **more: object
    ) -> AgentDaemon:
        driver = driver or StandInDriver()
        monkeypatch.setattr(
            daemon_module,
            "make_drivers",
            lambda settings: Drivers({"image": driver}, {"live": {"live driver": "in a test"}}),
        )
        folder = shm.setdefault(node, Path(f"/dev/shm/medes-test-{secrets.token_hex(6)}"))
        values: dict[str, object] = {
            "node_id": node,
            "controllers": (controller,) if controller else (),
            "listen": f"unix:/tmp/medes-{secrets.token_hex(6)}.sock",
            "peer_address": "127.0.0.1:0",
            "state_dir": str(tmp_path / node),
            "shm_dir": str(folder),
            "driver": "image",
            "idle_period_s": 3600.0,
            "keep_alive_period_s": 7200.0,
            "keep_dedup_period_s": 7200.0,
            **more,
        }
        settings = AgentSettings(**values)  # type: ignore[arg-type]
        settings.check()
        daemon = AgentDaemon(settings)
        daemon.driver = driver  # type: ignore[attr-defined]
        started.append(daemon)
        await daemon.start()
        if controller:
            await daemon.agent.controller.joined_once.wait()
        return daemon

    yield make
    for daemon in started:
        await daemon.stop()
    for folder in shm.values():
        shutil.rmtree(folder, ignore_errors=True)
