"""medes agent"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import click

from medes.cli.options import settings_options
from medes.config import AgentSettings, load
from medes.obs.logs import setup_logs


@click.command()
@settings_options(AgentSettings)
@click.option(
    "--purge-on-exit",
    is_flag=True,
    help="At the end restore or end every sandbox and remove all files (for demos and tests).",
)
def cli(config: Path | None, purge_on_exit: bool, **flags: Any) -> None:
    """Run the agent of a node: sandboxes, base pages, the restore API.

    Prints one line with its addresses when it serves. SIGTERM and SIGINT leave dedup'd sandboxes dedup'd for the next
    agent to take over, unless --purge-on-exit says otherwise.
    """
    settings = load(AgentSettings, config, flags=flags)
    setup_logs(settings.log_level, as_json=settings.log_json)
    from medes.agent.daemon import run

    asyncio.run(run(settings, purge_on_exit=purge_on_exit, announce=click.echo))
