"""Waiting for a call of a driver that holds a sandbox still, however long that takes.

A freezer of cgroup v1 can catch the sandbox in a system call that the driver makes in it: the call cannot be called off, and
is made when the sandbox is thawed. Until then the op has the sandbox (nobody else may touch it) and nothing else: the
callers are told, its turn and threads are others'. An agent that ends leaves it as a killed one would.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TypeVar

from medes import native
from medes.agent.agent import Agent
from medes.agent.sandboxes.op_cancel import OpCancel
from medes.agent.sandboxes.sandbox import SandboxEntry
from medes.errors import BusyError
from medes.limits import EVICTION_ANSWER_S, EVICTION_LOOK_S

log = logging.getLogger(__name__)

T = TypeVar("T")


class Standstill:
    """Of one sandbox, whose lock the op holds."""

    def __init__(
        self, agent: Agent, entry: SandboxEntry, cancel: OpCancel, file: native.SandboxFile, op: str
    ) -> None:
        """`op`: what it is called, for those who are told."""
        self._agent = agent
        self._entry = entry
        self._cancel = cancel
        self._file = file
        self._op = op
        self._began_s = agent.clock.now_s()

    async def patiently(self, work: asyncio.Future[T]) -> T:
        """What the driver's call returns or raises. When it is held up, those who wait are told."""
        try:
            while not (await asyncio.wait({work}, timeout=EVICTION_LOOK_S))[0]:
                if self._agent.stopping:
                    self._cancel.abandon()
                elif self._entry.lock.held_up is None:
                    await self._look()
        except asyncio.CancelledError:
            self._cancel.abandon()
            await asyncio.wait({work})
            raise
        try:
            return work.result()
        finally:
            del work  # see waits.py

    async def _look(self) -> None:
        """Tells those who wait when a freezer has the sandbox, or when it takes too long in any case."""
        agent, entry = self._agent, self._entry
        why = await agent.in_restores(entry.subject.held_up, self._file)
        if why is None and agent.clock.now_s() - self._began_s > EVICTION_ANSWER_S:
            why = BusyError(
                f"it stands still in the middle of a {self._op}",
                object=entry.id,
                hint="the op ends of itself",
            )
        if why is None or entry.lock.held_up is not None:
            return
        entry.explain(f"its {self._op} is held up: {why.message}")
        entry.lock.hold_up(why)
        log.warning("%s: the %s is held up, and goes on when it can: %s", entry.id, self._op, why)
        agent.tell(entry, entry.state, entry.reason)
