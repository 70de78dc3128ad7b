"""What the agent does on its own: periods, pressure, sandboxes whose processes have gone, driver events, debts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from medes.agent import departure, handlers, members, restore_op
from medes.agent.activity import end_expired
from medes.agent.base_op import needed_functions, retire_unneeded, retire_unused
from medes.agent.core import Agent
from medes.agent.drivers import Driver
from medes.agent.pressure import Pressure, read_pressure
from medes.agent.sandbox import SandboxEntry
from medes.agent.view import view_of
from medes.errors import LostError, ProcessGoneError
from medes.policy.lifecycle import Action, decide, under_pressure
from medes.types import PurgeCause
from medes.types import SandboxState as S

log = logging.getLogger(__name__)

TICK_S_MIN = 0.05
TICK_S_MAX = 1.0
# Checking that processes live costs a few system calls each; a whole round of all sandboxes takes this long.
LIVENESS_ROUND_S = 2.0
PRESSURE_DEDUPS_AT_ONCE = 2
BASE_STORE_RATIO_HIGH = 0.8
OWED_INTERVAL_S = 2.0


class Timers:
    """Runs until cancelled."""

    def __init__(
        self, agent: Agent, read: Callable[[int, int], Pressure] = read_pressure, tick_s: float = 0.25
    ) -> None:
        self._agent = agent
        self._read_pressure = read
        self._tick_s = min(TICK_S_MAX, max(TICK_S_MIN, tick_s))
        self._busy: set[str] = set()  # sandboxes with an op of ours under way
        self._next_liveness_s = 0.0
        self._next_owed_s = 0.0

    async def run(self) -> None:
        while True:
            await self._agent.clock.sleep(self._tick_s)
            try:
                await self.tick()
            except Exception:  # a timer that died would silently end all deduplication
                log.exception("timers")

    async def tick(self) -> None:
        """One round; ops run as tasks of their own."""
        agent = self._agent
        agent.journal.heal()
        now_s = agent.clock.now_s()
        if now_s >= self._next_liveness_s:
            self._next_liveness_s = now_s + LIVENESS_ROUND_S
            end_expired(agent)
            await retire_unneeded(agent, agent.settings.base_keep_period_s)
            await self._forget_gone()
        for entry in list(agent.entries.values()):
            if entry.id in self._busy or entry.lock.locked():
                continue
            if entry.pending is not None:
                continue  # nobody can give it its pages back now, and nothing is to be given up
            action = decide(view_of(agent, entry))
            if action is Action.DEDUP:
                self._start(entry, self._dedup(entry, "idle period over"))
            elif action is Action.PURGE:
                self._start(entry, self._purge(entry, f"{entry.state.label} for its whole period"))
        await self._relieve()
        if now_s >= self._next_owed_s:
            self._next_owed_s = now_s + OWED_INTERVAL_S
            agent.spawn(agent.peers.pay_owed(), "unpins owed")

    def _start(self, entry: SandboxEntry, work: Coroutine[Any, Any, None]) -> None:
        self._busy.add(entry.id)
        task = self._agent.spawn(work, f"timer {entry.id}")
        task.add_done_callback(lambda _: self._busy.discard(entry.id))

    async def _dedup(self, entry: SandboxEntry, reason: str) -> None:
        await handlers.dedup(self._agent, entry.id, reason=reason)

    async def _purge(self, entry: SandboxEntry, reason: str) -> None:
        await handlers.purge(self._agent, entry.id, reason, PurgeCause.TIMER)

    async def _forget_gone(self) -> None:
        agent = self._agent
        members.note(agent, await agent.in_restores(members.look, agent, list(agent.entries.values())))
        idle = [e for e in agent.entries.values() if not e.lock.locked()]
        gone = await agent.in_restores(lambda: [e for e in idle if e.gone()])
        for entry in gone:
            async with entry.lock:
                if entry.state is not S.PURGED and agent.entries.get(entry.id) is entry:
                    departure.forget(agent, entry, "its processes have exited")
        for driver in agent.drivers.values():
            driver.release_gone()

    async def _relieve(self) -> None:
        agent = self._agent
        used = agent.used_bytes()
        agent.pressure = self._read_pressure(used, agent.settings.memory_limit_bytes)
        if agent.pressure.high:
            agent.drop_previous()
        room = PRESSURE_DEDUPS_AT_ONCE - len(self._busy)
        if agent.pressure.high and room > 0:
            views = [view_of(agent, e) for e in agent.entries.values() if not e.lock.locked()]
            for sandbox_id in under_pressure([v for v in views if v.sandbox_id not in self._busy], room):
                entry = agent.entries[sandbox_id]
                self._start(entry, self._dedup(entry, f"memory pressure: {agent.pressure.text}"))
        if agent.pressure.high or agent.bases.used_bytes > BASE_STORE_RATIO_HIGH * agent.bases.limit_bytes:
            await retire_unused(agent, needed_functions(agent))


class DriverEvents:
    """Takes the events of the drivers' fault servers into the event loop."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._fds: list[int] = []

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        for driver in self._agent.drivers.values():
            if driver.event_fd >= 0:
                loop.add_reader(driver.event_fd, self._take, driver)
                self._fds.append(driver.event_fd)

    def stop(self) -> None:
        for fd in self._fds:
            asyncio.get_running_loop().remove_reader(fd)
        self._fds.clear()

    def _take(self, driver: Driver) -> None:
        for path, event in driver.take_events():
            entry = self._agent.by_path(path)
            if entry is None:
                continue
            if event == "demand_woken":
                self._agent.spawn(restore_op.woken(self._agent, entry), f"wake {entry.id}")
            elif event == "short_of_memory":
                restore_op.short_of_memory(entry)
            elif event in ("lost", "process_gone"):
                self._agent.spawn(self._ended(entry, path, event), f"{event} {entry.id}")

    async def _ended(self, entry: SandboxEntry, path: str, event: str) -> None:
        async with entry.lock:
            evicted = entry.evicted
            if evicted is None or evicted.file.path != path:
                return
            reason = evicted.live.lost_reason if evicted.live is not None else ""
            error = LostError(reason) if event == "lost" else ProcessGoneError(reason)
            await restore_op.ended_badly(self._agent, entry, evicted, error)
