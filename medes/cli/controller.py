"""medes controller"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import click

from medes.cli.options import settings_options
from medes.config import ControllerSettings, load
from medes.obs.logs import setup_logs


@click.command()
@settings_options(ControllerSettings)
def cli(config: Path | None, **flags: Any) -> None:
    """Run the controller: registry of base pages, membership, sandbox directory.

    Prints one line with its address when it serves; ends on SIGTERM or SIGINT after the calls under way.
    """
    settings = load(ControllerSettings, config, flags=flags)
    setup_logs(settings.log_level, as_json=settings.log_json)
    from medes.controller.process import run

    asyncio.run(run(settings, announce=click.echo))
