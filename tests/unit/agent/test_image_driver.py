"""The image driver under a real agent: every page rebuilt and compared, damage found."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from medes.agent.api import handlers
from medes.agent.api.registration import Registration
from medes.drivers.image import ImageDriver
from medes.errors import MedesError
from medes.types import SandboxState as S
from tests.support.counter_app import App
from tests.unit.agent.conftest import MakeAgent


async def test_the_pipeline_runs_without_userfaultfd(
    make_agent: MakeAgent, make_app: Callable[..., App]
) -> None:
    daemon = await make_agent(driver=ImageDriver())
    apps = [make_app(seed=n) for n in range(2)]
    for n, app in enumerate(apps):
        await handlers.register(daemon.agent, Registration(f"s{n}", "f", pids=(app.pid,)))
        report = (await handlers.dedup(daemon.agent, f"s{n}")).report
        encoded = report.patch_bytes + report.table_bytes
        # Nothing went, and the file came on top.
        assert (report.resident_bytes, report.gross_saved_bytes) == (report.warm_bytes, -encoded)
        assert encoded < 0.4 * report.warm_bytes
    for n, app in enumerate(apps):
        result = await handlers.restore(daemon.agent, f"s{n}", eager=True)
        assert result.sandbox.state is S.WARM
        assert result.report.pages_total > 1000
        app.ask()


async def test_a_damaged_sandbox_file_is_lost(make_agent: MakeAgent, make_app: Callable[..., App]) -> None:
    daemon, app = await make_agent(driver=ImageDriver()), make_app()
    await handlers.register(daemon.agent, Registration("s0", "f", pids=(app.pid,)))
    await handlers.dedup(daemon.agent, "s0")
    path = Path(daemon.agent.entries["s0"].evicted.file.path)  # type: ignore[union-attr]
    damage(path)
    with pytest.raises(MedesError):
        await handlers.restore(daemon.agent, "s0", eager=True)
    assert handlers.get(daemon.agent, "s0").state is S.LOST


def damage(path: Path) -> None:
    """Flips bits all over the encoded image (its place is in the header, see native/store/sandbox_format.h)."""
    with path.open("r+b") as file:
        file.seek(64)
        offset, length = struct.unpack("<QQ", file.read(16))
        for at in range(offset + length // 4, offset + length, 97):
            file.seek(at)
            byte = file.read(1)
            file.seek(at)
            file.write(bytes([byte[0] ^ 0xFF]))
