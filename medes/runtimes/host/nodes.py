"""The host's side of the agents: one link per node, which keeps what the agent says of each sandbox."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from medes.client import AsyncMedesClient
from medes.errors import MedesError, NotFoundError
from medes.runtimes.host.hosted_instance import HostedInstance
from medes.types import (
    DedupResult,
    Explanation,
    NodeStatus,
    RestoreResult,
    Sandbox,
    SandboxEvent,
    SandboxState,
)

log = logging.getLogger(__name__)
RETRY_S_MIN, RETRY_S_MAX = 0.2, 5.0
END_EVENT_S = 5.0


class NodeLink:
    """Calls one agent for the instances that run on its node, and follows their states.

    An agent that does not answer costs nothing but its service: instances run on, and the link comes back.
    """

    def __init__(
        self, address: str, hook_address: str, on_change: Callable[[Sandbox, str], None], driver: str = ""
    ) -> None:
        """driver: how the agent is to take memory; empty lets it choose. on_change(sandbox, reason) is called in the event loop for every change the agent reports."""
        self.address = address
        self.node_id = ""
        self._client = AsyncMedesClient(address)
        self._hook_address = hook_address
        self._driver = driver
        self._on_change = on_change
        self._watcher: asyncio.Task[None] | None = None
        self._purges_asked: set[str] = set()
        self._ends: dict[str, asyncio.Future[SandboxEvent]] = {}  # of instances whose processes are gone

    async def connect(self) -> NodeStatus:
        """Asks the agent who it is and starts to follow it. Raises agent_unreachable."""
        status = await self._client.node()
        self.node_id = status.node_id
        self._watcher = asyncio.create_task(self._follow(), name=f"watch {self.node_id}")
        return status

    async def status(self) -> NodeStatus:
        """The node's memory and bases. Raises agent_unreachable."""
        return await self._client.node()

    async def register(self, instance: HostedInstance, *, purge_kills: bool = True) -> Sandbox:
        """Puts an instance under the agent's care, its end included unless told otherwise."""
        spec = instance.spec
        sandbox = await self._client.register(
            spec.name,
            pids=[instance.pid],
            sandbox_id=instance.instance_id,
            tenant=spec.tenant,
            domain=spec.domain,
            lifecycle=spec.lifecycle,
            driver=self._driver,
            purge_kills=purge_kills,
            hook_address=self._hook_address if instance.restore_hooks or instance.snapshot_hooks else "",
        )
        instance.sandbox = sandbox
        instance.state = sandbox.state
        return sandbox

    async def begin(self, instance: HostedInstance) -> Sandbox:
        """A request begins; answers when the sandbox runs, so a dedup'd one is restored. An agent that forgot the instance (its state was removed) is told of it again."""
        try:
            sandbox = await self._client.begin(instance.instance_id)
        except NotFoundError:
            await self.register(instance)
            sandbox = await self._client.begin(instance.instance_id)
        instance.sandbox = sandbox
        return sandbox

    async def end(self, instance: HostedInstance) -> None:
        """A request has ended. A failure is logged: the agent then keeps the sandbox warm, which loses nothing."""
        try:
            instance.sandbox = await self._client.end(instance.instance_id)
            instance.state = instance.sandbox.state
        except MedesError as error:
            log.warning("%s: end of request not reported: %s", instance.instance_id, error)

    async def dedup(self, instance: HostedInstance, make_base: bool = False) -> DedupResult:
        """Runs the dedup op. Raises what the agent raises."""
        result = await self._client.dedup(instance.instance_id, make_base=make_base)
        instance.sandbox, instance.state = result.sandbox, result.sandbox.state
        return result

    async def restore(self, instance: HostedInstance, eager: bool = False) -> RestoreResult:
        """Runs the restore op. Raises lost when the sandbox must be started again."""
        result = await self._client.restore(instance.instance_id, eager=eager)
        instance.sandbox, instance.state = result.sandbox, result.sandbox.state
        return result

    async def get(self, instance: HostedInstance) -> Sandbox:
        """What the agent knows of the instance now."""
        instance.sandbox = await self._client.get(instance.instance_id)
        instance.state = instance.sandbox.state
        return instance.sandbox

    async def explain(self, instance: HostedInstance) -> Explanation:
        """What the agent knows of the instance in full."""
        return await self._client.explain(instance.instance_id)

    async def purge(self, instance: HostedInstance) -> None:
        """Ends the agent's care for an instance; failures do not matter to the caller, and the event that follows
        is no news."""
        self._purges_asked.add(instance.instance_id)
        try:
            await self._client.purge(instance.instance_id)
        except MedesError:
            self._purges_asked.discard(instance.instance_id)

    async def ended(self, instance: HostedInstance) -> SandboxEvent | None:
        """An instance's processes are gone: ends the agent's care for it. Returns the agent's word on its end, which comes
        after theirs where the agent itself ended them; None where there is none within END_EVENT_S."""
        word: asyncio.Future[SandboxEvent] = asyncio.get_running_loop().create_future()
        self._ends[instance.instance_id] = word
        try:
            async with asyncio.timeout(END_EVENT_S):
                with contextlib.suppress(NotFoundError):
                    await self._client.purge(instance.instance_id)
                return await word
        except (TimeoutError, MedesError):
            return None
        finally:
            del self._ends[instance.instance_id]

    async def close(self) -> None:
        """Stops following. Idempotent."""
        if self._watcher is not None:
            self._watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watcher
            self._watcher = None
        await self._client.close()

    def _asked_for(self, sandbox: Sandbox) -> bool:
        asked = sandbox.sandbox_id in self._purges_asked
        self._purges_asked.discard(sandbox.sandbox_id)
        return asked

    async def _follow(self) -> None:
        delay_s = RETRY_S_MIN
        while True:
            try:
                watch = self._client.watch()
                # The states of before the watch began; what changes in between is seen twice, which is harmless.
                for sandbox in await self._client.list():
                    self._on_change(sandbox, sandbox.lost_reason)
                async for event in watch:
                    delay_s = RETRY_S_MIN
                    if event.sandbox.state == SandboxState.PURGED:
                        word = self._ends.get(event.sandbox.sandbox_id)
                        if word is not None and not word.done():
                            word.set_result(event)
                        if self._asked_for(event.sandbox):
                            continue
                    self._on_change(event.sandbox, event.reason)
            except MedesError as error:
                log.info("agent of %s: %s", self.node_id, error)
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, RETRY_S_MAX)
