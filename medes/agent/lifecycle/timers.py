"""What the agent does on its own: periods, pressure, sandboxes whose processes have gone, driver events, debts."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from medes.agent.agent import Agent
from medes.agent.lifecycle import unreported, weighing
from medes.agent.lifecycle.activity import end_expired
from medes.agent.node.pressure import Pressure, read_pressure
from medes.agent.ops import departure, members, purge_op, restore_op, touches, turns
from medes.agent.ops.base_op import needed_functions, retire_unneeded, retire_unused
from medes.agent.ops.view import view_of
from medes.agent.sandboxes.sandbox import SandboxEntry
from medes.drivers.driver import Driver
from medes.errors import LostError, MedesError, ProcessGoneError
from medes.policy.keep_alive import Action
from medes.policy.policy import NodeView, Step
from medes.types import PurgeCause
from medes.types import SandboxState as S

log = logging.getLogger(__name__)

TICK_S_MIN = 0.05
TICK_S_MAX = 2.0
# The policy is asked at each tick while something changes, and else when by its outlook something is due. This often at least.
ASK_S_MAX = 10.0
ROUNDING_S = 0.001
# Checking that processes live costs a few system calls each; a whole round of all sandboxes takes this long.
LIVENESS_ROUND_S = 2.0
PRESSURE_DEDUPS_AT_ONCE = 2
BASE_STORE_RATIO_HIGH = 0.8
OWED_INTERVAL_S = 2.0
# What is saved is looked at this often for its mean over time, and whenever a sandbox changes its state.
SAVED_INTERVAL_S = 10.0


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
        self._next_saved_s = 0.0
        self._next_ask_s = 0.0

    async def run(self) -> None:
        while True:
            left_s = self._next_ask_s - self._agent.clock.now_s()
            await self._agent.clock.sleep(min(self._tick_s, max(left_s, TICK_S_MIN)))
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
            await unreported.look(agent)
            await retire_unneeded(agent, agent.settings.base_keep_period_s)
            await self._forget_gone()
            for entry in await touches.look(agent):
                if entry.id not in self._busy and not entry.lock.locked():
                    self._start(entry, self._reclaim(entry))
            agent.kept_pages.look(agent.pinned_bases, now_s)
            await weighing.look(agent)
        self._look_at_memory()
        if now_s >= self._next_saved_s:
            self._next_saved_s = now_s + SAVED_INTERVAL_S
            agent.accounting.look()
        if agent.policy_stale or agent.pressure.high or now_s >= self._next_ask_s:
            self._ask(now_s)
        await self._retire()
        if now_s >= self._next_owed_s and agent.peers.owes:
            self._next_owed_s = now_s + OWED_INTERVAL_S
            agent.spawn(agent.peers.pay_owed(), "unpins owed")

    def _ask(self, now_s: float) -> None:
        agent, changing = self._agent, self._agent.policy_stale
        node = self._view(now_s)
        agent.policy_stale = len(node.sandboxes) < len(agent.entries)  # it has not seen all
        for step in agent.policy.decide(node):
            self._take(step)
        if changing:  # the outlook may well be another one by the next tick
            self._next_ask_s = now_s + self._tick_s
            return
        outlooks = map(agent.policy.outlook, node.sandboxes)
        due_s = [outlook.in_s for outlook in outlooks if outlook.action is not Action.NONE]
        self._next_ask_s = now_s + min([ASK_S_MAX, *due_s]) + ROUNDING_S

    def _view(self, now_s: float) -> NodeView:
        """The node without sandboxes that an op has hold of, and those whose pages nobody can give back now."""
        entries = [
            e
            for e in self._agent.entries.values()
            if e.id not in self._busy and not e.lock.locked() and e.pending is None
        ]
        pressure = self._agent.pressure
        return NodeView(
            now_s,
            [view_of(self._agent, e) for e in entries],
            pressure.text if pressure.high else "",
            PRESSURE_DEDUPS_AT_ONCE - len(self._busy),
        )

    def _take(self, step: Step) -> None:
        entry = self._agent.entries.get(step.sandbox_id)
        if entry is None or entry.id in self._busy:
            log.error("the policy wants to %s %s, which it was not shown", step.action.value, step.sandbox_id)
        elif step.action is Action.DEDUP:
            self._start(entry, self._dedup(entry, step.reason))
        elif step.action is Action.PURGE and entry.spec.purge_kills:
            self._start(entry, self._purge(entry, step.reason))

    def _start(self, entry: SandboxEntry, work: Coroutine[Any, Any, None]) -> None:
        self._busy.add(entry.id)
        task = self._agent.spawn(work, f"timer {entry.id}")
        task.add_done_callback(lambda _: self._busy.discard(entry.id))

    async def _dedup(self, entry: SandboxEntry, reason: str) -> None:
        await turns.dedup(self._agent, entry, reason=reason)

    async def _reclaim(self, entry: SandboxEntry) -> None:
        with contextlib.suppress(MedesError):  # it is logged, counted, and tried again later
            await turns.reclaim(self._agent, entry)

    async def _purge(self, entry: SandboxEntry, reason: str) -> None:
        await purge_op.purge(self._agent, entry, reason, PurgeCause.TIMER)

    async def _forget_gone(self) -> None:
        agent = self._agent
        await members.look_again(agent, list(agent.entries.values()))
        idle = [e for e in agent.entries.values() if not e.lock.locked()]
        gone = await agent.in_restores(lambda: [e for e in idle if e.gone()])
        for entry in gone:
            if entry.lock.locked():  # an op came between: its end finds out
                continue
            async with entry.lock:
                if entry.state is not S.PURGED and agent.entries.get(entry.id) is entry:
                    await departure.forget(agent, entry, "its processes have exited")
        for driver in agent.drivers.running.values():
            driver.release_gone()

    def _look_at_memory(self) -> None:
        agent = self._agent
        limit_bytes = agent.settings.memory_limit_bytes
        used_bytes = agent.accounting.used_bytes() if limit_bytes else 0  # of no interest without a limit
        agent.pressure = self._read_pressure(used_bytes, limit_bytes)
        if agent.pressure.high:
            agent.drop_previous()
            agent.kept_pages.clear()

    async def _retire(self) -> None:
        agent = self._agent
        if agent.pressure.high or agent.bases.used_bytes > BASE_STORE_RATIO_HIGH * agent.bases.limit_bytes:
            await retire_unused(agent, needed_functions(agent))


class DriverEvents:
    """Takes the events of the drivers' fault servers into the event loop."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._fds: list[int] = []

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        for driver in self._agent.drivers.running.values():
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
            if evicted is None or evicted.live is None or evicted.file.path != path:
                return
            if evicted.live.state != "lost":  # it was said of the handle before this one
                return
            reason = evicted.live.lost_reason
            error = LostError(reason) if event == "lost" else ProcessGoneError(reason)
            await restore_op.ended_badly(self._agent, entry, evicted, error)
