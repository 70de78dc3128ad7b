"""Waiting for the first of several things.

An error keeps the frames that it came through, with their variables. Where one of those is the task that failed, the task
keeps the error in turn: what the frames hold (descriptors of a sandbox's memory, for one) stays until Python's collector
comes, which on an idle agent may be never. So whoever raises what a task of its own raised deletes the variable first.
"""

from __future__ import annotations

import asyncio
from typing import Any


async def first_of(
    *events: asyncio.Event, work: asyncio.Future[Any] | None = None, timeout_s: float | None = None
) -> bool:
    """Until one of the events is set or `work` has ended, whatever with; `work` goes on otherwise, also when this is
    cancelled. False when `timeout_s` passed before."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        among = [*waits, work] if work is not None else waits
        done, _ = await asyncio.wait(among, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        return bool(done)
    finally:
        for wait in waits:
            wait.cancel()
