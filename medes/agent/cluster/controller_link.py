"""The agent's link to its controller: join the first that answers, heartbeat, announce again after either side restarted,
join the next when this one is gone.

Everything the controller holds of this node is announced from here, so the link only needs to know *that* something
changed: bases carry `announced`, sandboxes are collected in a dirty set and sent together. Without a controller (none
configured, or it is away) the agent works on with what it knows itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable, Sequence
from typing import Protocol

from medes import native
from medes.agent.controller_client import ControllerClient, Joined, Lookup
from medes.chance import Chance
from medes.clock import Clock
from medes.errors import AlreadyExistsError, ControllerUnreachableError, InvalidArgumentError, MedesError
from medes.types import BaseDescriptor, FunctionUsage, NodeEndpoints, NodeUsage, SandboxRecord, SandboxState

log = logging.getLogger(__name__)

RETRY_S_MIN = 0.2
RETRY_S_MAX = 5.0
REFUSED_AGAIN_S = 60.0
CALL_TIMEOUT_S = 5.0
ANNOUNCE_INTERVAL_S = 0.1
FUNCTIONS_INTERVAL_S = 5.0  # between two tells of what each function saves, if no sandbox fell asleep or woke
TELLING_RATIO_MAX = 0.05  # of the time goes into finding out what is told
ANNOUNCED_AT_ONCE_MAX = 5000


class Announcer(Protocol):
    """What the link asks the agent for."""

    def usage(self) -> NodeUsage: ...
    def function_usage(self) -> tuple[FunctionUsage, ...]: ...
    def record(self, sandbox_id: str) -> SandboxRecord | None: ...
    def all_records(self) -> list[SandboxRecord]: ...
    async def unannounced_bases(
        self, *, all_bases: bool
    ) -> list[tuple[BaseDescriptor, native.Fingerprints]]: ...
    def base_announced(self, base_id: int) -> None: ...
    async def joined(self, joined: Joined) -> None: ...


class ControllerLink:
    """Calls raise controller_unreachable while the link is down, without waiting for a timeout."""

    def __init__(
        self,
        clients: Sequence[ControllerClient],
        announcer: Announcer,
        clock: Clock,
        chance: Chance,
        memory_bytes: int,
        endpoints: Callable[[], NodeEndpoints],
    ) -> None:
        """`clients`: of the controllers, in the order in which they are tried; they are closed with the link."""
        self._clients = tuple(clients)
        self._joined: ControllerClient | None = None  # the last that took this node
        self._announcer = announcer
        self._clock = clock
        self._chance = chance
        self._incarnation = self._chance.hex(8)
        self._memory_bytes = memory_bytes
        self._endpoints = endpoints
        self._dirty: set[str] = set()
        self._told: set[str] = set()  # sandboxes that the controller has heard of
        self._announcing = asyncio.Lock()
        self._dirty_event = asyncio.Event()
        self._asleep: set[str] = set()  # as the controller was told
        self._savings_changed = False
        self._beat_wanted = asyncio.Event()  # the interval is over, or savings have changed
        self._controller_incarnation = ""
        self._refused_s = -math.inf
        self.connected = False
        self.joined_once = asyncio.Event()

    async def joined_within(self, timeout_s: float) -> bool:
        """Waits until this node has joined, as long as there is a controller to join. Says whether it has."""
        if self._clients:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self.joined_once.wait()
        return self.joined_once.is_set()

    # --- calls ---------------------------------------------------------------------------------------------
    def _ready(self) -> ControllerClient:
        if not self._clients:
            raise ControllerUnreachableError("this agent has no controller", object=self._endpoints().node_id)
        if not self.connected or self._joined is None:
            raise ControllerUnreachableError(
                "no controller answers" if len(self._clients) > 1 else "the controller does not answer",
                object=", ".join(client.address for client in self._clients),
            )
        return self._joined

    async def lookup(self, domain: str, hashes: bytes, samples_per_page: int) -> Lookup:
        client = self._ready()
        await self._tell_of_new(client)
        return await client.lookup(self._endpoints().node_id, domain, hashes, samples_per_page)

    async def advise(self, function: str, domain: str, sandbox_id: str) -> tuple[bool, str]:
        client = self._ready()
        await self._tell_of_new(client)
        return await client.advise(self._endpoints().node_id, function, domain, sandbox_id)

    async def publish(self, descriptor: BaseDescriptor, fingerprints: native.Fingerprints) -> None:
        await self._ready().publish(descriptor, fingerprints)
        self._announcer.base_announced(descriptor.base_id)

    async def retire(self, base_id: int) -> None:
        await self._ready().retire(self._endpoints().node_id, base_id)

    async def resolve(self, node_id: str) -> NodeEndpoints | None:
        """Where a node is; None when the controller does not know or cannot be asked."""
        try:
            return (await self._ready().nodes()).get(node_id)
        except MedesError:
            return None

    async def is_member(self, node_id: str) -> bool:
        """Whether the controller counts it among the living; False where there is none to ask. Raises controller_unreachable
        and what else keeps it from answering."""
        return bool(self._clients) and node_id in await self._ready().nodes()

    async def _tell_of_new(self, client: ControllerClient) -> None:
        """A node hears only of domains in which it has sandboxes, so these must be known before it asks."""
        if self._dirty - self._told:
            await self._announce_dirty(client)

    def changed(self, sandbox_id: str) -> None:
        """Has the sandbox announced within ANNOUNCE_INTERVAL_S."""
        self._dirty.add(sandbox_id)
        self._dirty_event.set()

    # --- loops ---------------------------------------------------------------------------------------------
    async def run(self) -> None:
        """Joins and stays joined until cancelled."""
        if not self._clients:
            return
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_joined())
            group.create_task(self._announce_changes())

    async def _keep_joined(self) -> None:
        """One controller after the other; pauses when none of them answers. One that refuses this node is not passed by:
        what it refuses, such as another agent's name, no other should take."""
        retry_s, at, failed = RETRY_S_MIN, 0, 0
        while True:
            client = self._clients[at]
            try:
                joined = await self._join(client)
                retry_s, failed = RETRY_S_MIN, 0
                await self._beat(client, joined)
            except MedesError as error:
                refused = isinstance(error, AlreadyExistsError | InvalidArgumentError)
                self._tell(client, error, refused=refused, again=self.connected or retry_s == RETRY_S_MIN)
                failed = 0 if refused else failed + 1
                at = at if refused else (at + 1) % len(self._clients)
            self.connected = False
            if failed % len(self._clients) == 0:
                await self._clock.sleep(retry_s)
                retry_s = min(RETRY_S_MAX, retry_s * 2)

    async def _join(self, client: ControllerClient) -> Joined:
        if self._joined not in (None, client):
            # What this controller may have known of the node before is void: it went on elsewhere.
            self._incarnation = self._chance.hex(8)
        joined = await client.join(self._endpoints(), self._memory_bytes, self._incarnation, CALL_TIMEOUT_S)
        await self._announcer.joined(joined)
        self._joined = client
        await self._announce_everything(client, joined)
        return joined

    def _tell(self, client: ControllerClient, error: MedesError, *, refused: bool, again: bool) -> None:
        """A controller that is away comes back; one that refuses this node needs somebody to act, and is told of every
        minute."""
        if refused:
            now_s = self._clock.now_s()
            if now_s - self._refused_s >= REFUSED_AGAIN_S:
                self._refused_s = now_s
                log.error("controller %s refuses this node, which works on alone: %s", client.address, error)
        elif again:
            log.warning("controller %s: %s", client.address, error)

    async def _announce_everything(self, client: ControllerClient, joined: Joined) -> None:
        self._controller_incarnation = joined.controller_incarnation
        node_id = self._endpoints().node_id
        for descriptor, fingerprints in await self._announcer.unannounced_bases(all_bases=True):
            await client.publish(descriptor, fingerprints)
            self._announcer.base_announced(descriptor.base_id)
        self._dirty.clear()
        records = self._announcer.all_records()
        await client.announce(node_id, records, full=True)
        self._told = {r.sandbox_id for r in records}
        self._asleep = {r.sandbox_id for r in records if r.state is SandboxState.DEDUP}
        self.connected = True
        self._refused_s = -math.inf
        self.joined_once.set()
        log.info("joined controller %s", client.address)

    async def _beat(self, client: ControllerClient, joined: Joined) -> None:
        """Returns when it is time to join again; raises when the controller is gone."""
        told_s, pause_s = -math.inf, 0.0
        while True:
            await self._until_due(joined.heartbeat_interval_ms / 1000, pause_s)
            begin_s, functions = self._clock.now_s(), None
            changed = self._savings_changed and begin_s >= told_s + pause_s
            if changed or begin_s >= told_s + FUNCTIONS_INTERVAL_S:
                self._savings_changed = False
                told_s, functions = begin_s, self._announcer.function_usage()
                pause_s = (self._clock.now_s() - begin_s) / TELLING_RATIO_MAX
            incarnation, join_again = await client.heartbeat(
                self._endpoints().node_id,
                self._incarnation,
                self._announcer.usage(),
                CALL_TIMEOUT_S,
                functions,
            )
            if join_again or incarnation != self._controller_incarnation:
                log.info("the controller restarted: announcing everything again")
                return
            for descriptor, fingerprints in await self._announcer.unannounced_bases(all_bases=False):
                await client.publish(descriptor, fingerprints)
                self._announcer.base_announced(descriptor.base_id)

    async def _until_due(self, interval_s: float, pause_s: float) -> None:
        """Until the next heartbeat: after the interval, or when a sandbox has fallen asleep or woken, `pause_s` after the
        last one at the earliest."""
        due_s = self._clock.now_s() + min(interval_s, max(pause_s, ANNOUNCE_INTERVAL_S))
        timer = asyncio.get_running_loop().call_later(interval_s, self._beat_wanted.set)
        try:
            await self._beat_wanted.wait()
        finally:
            timer.cancel()
        if (left_s := due_s - self._clock.now_s()) > 0:
            await self._clock.sleep(left_s)
        self._beat_wanted.clear()

    async def _announce_changes(self) -> None:
        while True:
            await self._dirty_event.wait()
            await self._clock.sleep(ANNOUNCE_INTERVAL_S)
            self._dirty_event.clear()
            if not self.connected:
                continue  # joining announces everything
            try:
                await self._announce_dirty(self._ready())
            except MedesError as error:
                log.info("announcing sandboxes: %s", error)

    async def _announce_dirty(self, client: ControllerClient) -> None:
        """Some of what changed; one call at a time, so that none overtakes another."""
        async with self._announcing:
            taken = [self._dirty.pop() for _ in range(min(len(self._dirty), ANNOUNCED_AT_ONCE_MAX))]
            if self._dirty:
                self._dirty_event.set()
            records = [r for r in map(self._announcer.record, taken) if r is not None]
            try:
                await client.announce(self._endpoints().node_id, records, full=False)
            except MedesError:
                self._dirty.update(taken)
                raise
            told = {r.sandbox_id for r in records}
            asleep = {r.sandbox_id for r in records if r.state is SandboxState.DEDUP}
            if asleep != self._asleep & told:
                self._savings_changed = True
                self._beat_wanted.set()
            self._asleep = self._asleep - told | asleep
            self._told |= told
            self._told.difference_update(r.sandbox_id for r in records if r.state is SandboxState.PURGED)

    async def leave(self) -> None:
        """Tells the controller that this node goes; never raises."""
        if self.connected:
            try:
                await self._ready().leave(self._endpoints().node_id, self._incarnation, CALL_TIMEOUT_S)
            except MedesError as error:
                log.info("leaving: %s", error)
        self.connected = False

    async def close(self) -> None:
        for client in self._clients:
            await client.close()
