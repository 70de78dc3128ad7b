"""The last step of a dedup op: the driver takes the pages away. It alone cannot be undone once a page has gone, and it alone
may be held up without end (medes.agent.ops.standstill).
"""

from __future__ import annotations

import logging

from medes import native
from medes.agent.agent import Agent
from medes.agent.node.fault_points import point
from medes.agent.ops import touches, waiting
from medes.agent.ops.op_pins import OpPins, Planned
from medes.agent.ops.standstill import Standstill
from medes.agent.ops.take_back import PROVEN
from medes.agent.sandboxes.op_cancel import OpCancel
from medes.agent.sandboxes.sandbox import Evicted, SandboxEntry
from medes.drivers.driver import Handle
from medes.errors import MedesError, ProcessGoneError
from medes.types import SandboxState as S

log = logging.getLogger(__name__)


class Eviction:
    """Of one sandbox, whose lock the op holds and whose file is written and journalled."""

    def __init__(
        self, agent: Agent, entry: SandboxEntry, cancel: OpCancel, pins: OpPins, file: native.SandboxFile
    ) -> None:
        self._agent = agent
        self._entry = entry
        self._cancel = cancel
        self._pins = pins
        self._file = file
        self.undone = True  # once run() has raised: no page is out, and nobody else will look

    async def run(self, image: native.MemoryImage, planned: Planned, hold_frozen: bool) -> Evicted:
        """Ends with the dedup'd form in `entry.evicted`. Raises what the driver does. Unless `undone` then, pages are on
        their way back, or the sandbox is lost, or the next agent has to look."""
        agent, entry = self._agent, self._entry
        driver = agent.driver_of(entry)
        sleep, holdout, tick_holdout = touches.sleep_of(agent, entry)
        try:
            live = await Standstill(agent, entry, self._cancel, self._file, "dedup op").patiently(
                agent.in_own_thread(
                    driver.evict,
                    entry.subject,
                    image,
                    self._file,
                    planned.bases,
                    hold_frozen,
                    self._cancel.flag,
                    sleep,
                )
            )
        except BaseException as error:
            if self._cancel.abandoned:
                self.undone = False
                log.warning("%s: left to the next agent in the middle of its dedup op: %s", entry.id, error)
            elif isinstance(error, MedesError) and await agent.in_restores(
                entry.subject.pages_out, self._file
            ):
                self.undone = False
                await self._take_back(planned, error)
            raise
        point("dedup.evicted")
        evicted = self._evicted(planned, live)
        evicted.holdout, evicted.tick_holdout = holdout, tick_holdout
        entry.put_away(evicted)
        entry.pages_went()
        return evicted

    def _evicted(self, planned: Planned, live: Handle | None) -> Evicted:
        return Evicted(
            file=self._file,
            bases=planned.bases,
            live=live,
            holder=self._pins.holder,
            pins=self._pins.by_node,
            descriptors=planned.descriptors,
            endpoints=planned.endpoints,
            transport_by_peer=planned.transport_by_peer,
            since_s=self._agent.clock.now_s(),
        )

    async def _take_back(self, planned: Planned, error: MedesError) -> None:
        """The eviction failed half-way: what has gone must come back from the sandbox file, or is lost."""
        agent, entry = self._agent, self._entry
        entry.pages_went()
        try:
            live = await agent.in_restores(
                agent.driver_of(entry).adopt, entry.subject, self._file, planned.bases
            )
        except (ProcessGoneError, *PROVEN) as second:
            agent.lose(entry, f"eviction failed ({error}), and so did taking the pages back ({second})")
            return
        except MedesError as second:
            entry.put_away(self._evicted(planned, None))
            agent.move(entry, S.DEDUP, f"eviction failed half-way: {error}")
            waiting.wait(agent, entry, second, wanted=True)
            return
        entry.put_away(self._evicted(planned, live))
        agent.move(entry, S.DEDUP, f"eviction failed half-way: {error}; its pages are to come back")
