"""Which drivers can run on this node."""

from __future__ import annotations

import importlib
import importlib.util

from medes import native
from medes.agent.drivers import Driver
from medes.config import AgentSettings


def make_drivers(settings: AgentSettings) -> tuple[dict[str, Driver], dict[str, str]]:
    """The drivers that can run here by name, and what the live driver lacks → how to get it."""
    drivers: dict[str, Driver] = {}
    missing = native.probe_live()
    if not missing:
        live = importlib.import_module("medes.drivers.live")
        drivers["live"] = live.LiveDriver(threads=settings.fault_threads)
    if importlib.util.find_spec("medes.drivers.image"):
        drivers["image"] = importlib.import_module("medes.drivers.image").ImageDriver()
    return drivers, missing
