"""The function host: deploys functions as warm processes and sends each request to one of them.

A request goes to a warm instance, else to a dedup'd one (the agent restores it first), else to a new one on the
node with the fewest instances. The host owns the processes; the agents only look after their memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medes import plugins
from medes.clock import Clock
from medes.errors import (
    AlreadyExistsError,
    BusyError,
    InvalidArgumentError,
    LostError,
    NotFoundError,
    ProcessGoneError,
    TransientError,
)
from medes.plugins import Kind
from medes.runtimes.contracts.contract import Contract, InstanceFailedError, Phase
from medes.runtimes.host.hosted_instance import HostedInstance
from medes.runtimes.host.nodes import NodeLink
from medes.runtimes.manifest import FunctionSpec
from medes.types import PurgeCause, RestoreReport, Sandbox, SandboxState

log = logging.getLogger(__name__)
INSTANCES_PER_FUNCTION_MAX = 100
FUNCTIONS_MAX = 1000
# A request whose instance is gone before it had it, or that may be run again, is tried on so many.
STARTS_MAX = 3
ASLEEP = (SandboxState.DEDUPING, SandboxState.DEDUP, SandboxState.RESTORING)


@dataclass(frozen=True, slots=True)
class Invocation:
    """An answered request. `start` is "warm", "dedup" or "cold"."""

    result: Any
    instance_id: str
    node_id: str
    start: str
    total_ms: float
    handler_ms: float
    restore: RestoreReport | None = None


@dataclass
class Function:
    """A deployed function and its instances."""

    spec: FunctionSpec
    instances: list[HostedInstance] = field(default_factory=list)
    freed: asyncio.Condition = field(default_factory=asyncio.Condition)
    started: int = 0
    starting: int = 0
    lost: int = 0


class FunctionHost:
    """Belongs to one event loop. Use it as an async context manager: close() ends every instance."""

    def __init__(
        self,
        agents: Sequence[str],
        runtime_dir: Path,
        *,
        hook_address: str = "",
        driver: str = "",
        log_dir: Path | None = None,
        on_process: Callable[[int, bool], None] | None = None,
        clock: Clock | None = None,
    ) -> None:
        """agents: addresses of the nodes' restore APIs, all on this machine. runtime_dir is this host's alone, its path short,
        as instances may have sockets in it; the caller removes it. Logs go to log_dir, else to `logs` in there.
        hook_address is where agents report restores to (see medes.runtimes.host.control); driver is how they take memory,
        empty for their choice. on_process(pid, alive) hears of
        every process group that starts or ends."""
        if not agents:
            raise InvalidArgumentError(
                "the function host needs an agent", hint="--agent unix:/run/medes/agent.sock"
            )
        self.functions: dict[str, Function] = {}
        self.nodes: dict[str, NodeLink] = {}
        self._links = [NodeLink(address, hook_address, self._on_change, driver) for address in agents]
        self._runtime_dir = runtime_dir
        self._log_dir = log_dir or runtime_dir / "logs"
        self._on_process = on_process or (lambda pid, alive: None)
        self._by_id: dict[str, HostedInstance] = {}
        self._clock = clock or Clock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._requests = 0
        self._folders = itertools.count()  # numbers, as the path of a socket is short

    async def start(self) -> None:
        """Connects to the agents. Raises agent_unreachable, already_exists for two agents of one node."""
        self._log_dir.mkdir(parents=True, exist_ok=True)
        for link in self._links:
            await link.connect()
            if link.node_id in self.nodes:
                raise AlreadyExistsError(f"two agents are node {link.node_id!r}", object=link.address)
            self.nodes[link.node_id] = link

    async def deploy(self, spec: FunctionSpec, instances: int = 1) -> list[HostedInstance]:
        """Starts warm instances of a new function, spread over the nodes. All or none: raises what the first
        failure raised, already_exists, and unsupported where this machine lacks what its contract needs."""
        if spec.name in self.functions:
            raise AlreadyExistsError("the function is deployed", object=spec.name, hint="medes function rm")
        if not 1 <= instances <= INSTANCES_PER_FUNCTION_MAX:
            raise InvalidArgumentError(
                f"{instances} instances; 1 to {INSTANCES_PER_FUNCTION_MAX} are possible", object=spec.name
            )
        if len(self.functions) >= FUNCTIONS_MAX:
            raise BusyError(f"{FUNCTIONS_MAX} functions are deployed", object=spec.name)
        _check_contract(spec)
        function = self.functions[spec.name] = Function(spec)
        try:
            return [await self.add_instance(function) for _ in range(instances)]
        except BaseException:
            await self.remove(spec.name)
            raise

    async def add_instance(self, function: Function, reserve: bool = False) -> HostedInstance:
        """Cold-starts an instance on the node that has fewest; reserved for the caller if asked."""
        node = self._least_used()
        function.starting += 1
        function.started += 1
        instance = HostedInstance(
            function.spec, f"{function.spec.name}-{function.started}", node.node_id, self._clock
        )
        self._by_id[instance.instance_id] = instance
        try:
            log_path = self._log_dir / f"{instance.instance_id}.log"
            await instance.start(
                log_path, self._runtime_dir / "run" / f"{next(self._folders)}", self._on_exit
            )
            self._on_process(instance.pid, True)
            await node.register(instance)
            function.instances.append(instance)
        except BaseException:
            self._forget(instance)
            raise
        finally:
            function.starting -= 1
        if not reserve:
            await self._free(function, instance)
        return instance

    async def remove(self, name: str) -> None:
        """Ends a function's instances. Raises not_found."""
        function = self._function(name)
        del self.functions[name]
        for instance in list(function.instances):
            self._forget(instance)
            await self.nodes[instance.node_id].purge(instance)

    async def invoke(
        self, name: str, event: Any = None, *, instance_id: str = "", timeout_s: float | None = None
    ) -> Invocation:
        """Answers a request (event None: the one of function.toml), on one instance if it is named.

        Raises HandlerError when the function raised, busy when every place stayed taken until the timeout, lost
        when the named instance is lost (unnamed, the request goes to another), and the agent's errors. A request that
        an instance has been given is given to no other, unless the function is idempotent: InstanceFailedError.
        """
        function = self._function(name)
        event = function.spec.event if event is None else event
        timeout_s = timeout_s or function.spec.timeout_s
        begun_s = self._clock.now_s()
        for attempt in range(1, STARTS_MAX + 1):
            instance, cold = await self._acquire(function, instance_id, timeout_s)
            try:
                return await self._serve(instance, event, timeout_s, begun_s, cold)
            except (LostError, ProcessGoneError) as error:
                function.lost += 1
                self._forget(instance)
                log.warning("%s is lost: %s", instance.instance_id, error)
                if instance_id or attempt == STARTS_MAX:
                    raise
            finally:
                self._release(function, instance)
        raise AssertionError("unreachable")

    async def dedup(self, instance: HostedInstance, make_base: bool = False) -> Any:
        """Runs the dedup op on an idle instance; the agent has its before-hooks run first. Raises busy, and the
        agent's errors."""
        if instance.busy:
            raise BusyError("serves a request", object=instance.instance_id)
        instance.busy = True
        try:
            return await self.nodes[instance.node_id].dedup(instance, make_base)
        finally:
            await self._free(self.functions[instance.spec.name], instance)

    async def run_hooks(self, sandbox_id: str, phase: Phase) -> int:
        """The agent is about to dedup this sandbox ("before_snapshot") or has restored it ("after_restore"): runs its
        hooks; says how many. Raises not_found."""
        instance = self._by_id.get(sandbox_id)
        if instance is None:
            raise NotFoundError("no such instance", object=sandbox_id)
        return await instance.run_hooks(phase)

    def instance(self, instance_id: str) -> HostedInstance:
        """Raises not_found."""
        if instance_id not in self._by_id:
            raise NotFoundError("no such instance", object=instance_id, hint="medes function ls")
        return self._by_id[instance_id]

    async def close(self) -> None:
        """Ends every instance and leaves the agents. Idempotent."""
        instances = list(self._by_id.values())
        for task in self._tasks:
            task.cancel()
        self.functions.clear()
        for instance in instances:
            self._forget(instance)
        reachable = {link.node_id for link in self.nodes.values()}
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5):
                purges = [self.nodes[i.node_id].purge(i) for i in instances if i.node_id in reachable]
                await asyncio.gather(*purges, return_exceptions=True)
        for link in self._links:
            await link.close()

    async def __aenter__(self) -> FunctionHost:
        try:
            await self.start()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    # --- one request -----------------------------------------------------------------------------------------
    async def _serve(
        self, instance: HostedInstance, event: Any, timeout_s: float, begun_s: float, cold: bool
    ) -> Invocation:
        report = await self._wake(instance)
        self._requests += 1
        request_id = f"{instance.instance_id}-{self._requests:x}"
        try:
            result, handler_ms = await instance.invoke(event, request_id, timeout_s)
        except InstanceFailedError as error:
            if error.begun and not instance.spec.idempotent:
                raise InstanceFailedError(
                    f"{error.message} with the request, which may have been done in part and is not tried again",
                    object=instance.instance_id,
                    hint=error.hint or "idempotent = true in function.toml allows it",
                    begun=True,
                ) from error
            raise ProcessGoneError(error.message, object=instance.instance_id, hint=error.hint) from error
        return Invocation(
            result=result,
            instance_id=instance.instance_id,
            node_id=instance.node_id,
            start="cold" if cold else "dedup" if report is not None else "warm",
            total_ms=(self._clock.now_s() - begun_s) * 1000,
            handler_ms=handler_ms,
            restore=report,
        )

    async def _wake(self, instance: HostedInstance) -> RestoreReport | None:
        """Tells the agent that a request begins, which brings a dedup'd instance's memory back; returns the
        restore's report if there was one. Raises lost, process_gone, and agent_unreachable or peer_unreachable for an
        instance that sleeps while its agent or a holder of its base pages is away."""
        node = self.nodes[instance.node_id]
        slept = instance.state in (SandboxState.DEDUP, SandboxState.RESTORING)
        restores_before = instance.sandbox.restore_count if instance.sandbox else 0
        try:
            sandbox = await node.begin(instance)
        except TransientError as error:
            # A warm instance needs nobody; a dedup'd one can only wait for its agent.
            if instance.state in ASLEEP:
                raise
            log.warning("%s: served without its agent: %s", instance.instance_id, error)
            return None
        if sandbox.state == SandboxState.LOST:
            raise LostError(sandbox.lost_reason or "the agent lost it", object=instance.instance_id)
        if sandbox.state in (SandboxState.DEDUP, SandboxState.DEDUPING):
            result = await node.restore(instance)
            return result.report if result.report.was_dedup else None
        # The count alone would not do: it begins anew with the agent.
        woken = slept or sandbox.state == SandboxState.RESTORING or sandbox.restore_count > restores_before
        return sandbox.last_restore if woken else None

    async def _acquire(
        self, function: Function, instance_id: str, timeout_s: float
    ) -> tuple[HostedInstance, bool]:
        """A reserved instance, and whether it was started for this request. The wait for a free one counts
        against the timeout, a cold start does not."""
        try:
            async with asyncio.timeout(timeout_s), function.freed:
                while True:
                    instance = self._pick(function, instance_id)
                    if instance is not None:
                        instance.busy = True
                        return instance, False
                    # One whose answer is out and whose end is being reported is free in a moment.
                    finishing = any(instance.finishing for instance in function.instances)
                    places = INSTANCES_PER_FUNCTION_MAX - len(function.instances) - function.starting
                    if not instance_id and not finishing and places > 0:
                        break
                    await function.freed.wait()
        except TimeoutError:
            raise BusyError(
                f"no instance was free within {timeout_s:g} s", object=function.spec.name
            ) from None
        return await self.add_instance(function, reserve=True), True

    def _pick(self, function: Function, instance_id: str) -> HostedInstance | None:
        """Warm before dedup'd; among equals the one used last, so that the others may stay asleep."""
        if instance_id and self.instance(instance_id) not in function.instances:
            raise NotFoundError(
                "not an instance of this function", object=f"{function.spec.name}/{instance_id}"
            )
        idle = [i for i in function.instances if not i.busy and instance_id in ("", i.instance_id)]
        return min(idle, key=lambda i: (i.state in ASLEEP, -i.last_used_s), default=None)

    def _release(self, function: Function, instance: HostedInstance) -> None:
        """Reports the end of the request and frees the instance, after the answer is on its way."""

        instance.finishing = True

        async def finish() -> None:
            if instance.exited:
                self._forget(instance)
            else:
                await self.nodes[instance.node_id].end(instance)
            await self._free(function, instance)

        task = asyncio.create_task(finish())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _free(self, function: Function, instance: HostedInstance) -> None:
        instance.last_used_s = self._clock.now_s()
        instance.busy = instance.finishing = False
        async with function.freed:
            function.freed.notify_all()

    # --- instances that end ----------------------------------------------------------------------------------
    def _forget(self, instance: HostedInstance) -> None:
        """Ends an instance and drops it. Idempotent."""
        function = self.functions.get(instance.spec.name)
        if function is not None and instance in function.instances:
            function.instances.remove(instance)
        if self._by_id.pop(instance.instance_id, None) is None:
            return
        if instance.pid:
            instance.kill()
            self._on_process(instance.pid, False)

    def _on_exit(self, instance: HostedInstance) -> None:
        self._forget(instance)
        task = asyncio.create_task(self._after_exit(instance))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _after_exit(self, instance: HostedInstance) -> None:
        link = self.nodes.get(instance.node_id)
        word = await link.ended(instance) if link is not None else None
        if word is not None and word.purge_cause is PurgeCause.TIMER:
            log.info("%s was ended by its agent: %s", instance.instance_id, word.reason)
        else:
            log.warning("%s ended by itself: %s", instance.instance_id, instance.log_tail().strip()[-200:])

    def _on_change(self, sandbox: Sandbox, reason: str) -> None:
        sandbox_id, state = sandbox.sandbox_id, sandbox.state
        instance = self._by_id.get(sandbox_id)
        if instance is None:
            return
        instance.state = state
        # A request's own calls bring newer views than the events that trail behind them.
        if not instance.busy:
            instance.sandbox = sandbox
        if state == SandboxState.LOST and not instance.busy:
            function = self.functions.get(instance.spec.name)
            if function is not None:
                function.lost += 1
            log.warning("%s is lost: %s", sandbox_id, reason)
            self._forget(instance)
        elif state == SandboxState.PURGED and not instance.busy:
            # The agent's keep-alive or keep-dedup period is over.
            self._forget(instance)

    def _function(self, name: str) -> Function:
        if name not in self.functions:
            raise NotFoundError("no such function", object=name, hint="medes function ls")
        return self.functions[name]

    def _least_used(self) -> NodeLink:
        counts = dict.fromkeys(self.nodes, 0)
        for instance in self._by_id.values():
            counts[instance.node_id] += 1
        return self.nodes[min(counts, key=lambda node_id: (counts[node_id], node_id))]


def _check_contract(spec: FunctionSpec) -> None:
    contract: type[Contract] = plugins.load(Kind.FUNCTION_CONTRACT, spec.contract)
    if lacks := contract.missing():
        raise plugins.cannot_run(f"its contract {spec.contract!r}", lacks, spec.name)
