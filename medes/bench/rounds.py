"""What benchmarks of restores do with an instance: ask it, dedup it, wait until it is whole."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from medes.bench.throughput import settled
from medes.demo.driver import COMPLETE_TIMEOUT_S, POLL_S
from medes.errors import DeadlineExceededError, LostError
from medes.runtimes.host.host import FunctionHost
from medes.runtimes.host.hosted_instance import HostedInstance
from medes.types import RestoreReport, Sandbox, SandboxState


async def ask(host: FunctionHost, instance: HostedInstance, event: Any) -> tuple[Any, float]:
    """The answer, and the milliseconds it took."""
    answer = await host.invoke(instance.spec.name, event, instance_id=instance.instance_id)
    return answer.result, answer.total_ms


async def dedup(host: FunctionHost, instance: HostedInstance) -> Sandbox:
    """The sandbox as it is dedup'd."""
    await settled(instance)
    result = await host.dedup(instance)
    return result.sandbox  # type: ignore[no-any-return]


async def complete(host: FunctionHost, instance: HostedInstance) -> RestoreReport:
    """Waits for the last page. Raises lost, deadline_exceeded."""
    node = host.nodes[instance.node_id]
    deadline_s = time.monotonic() + COMPLETE_TIMEOUT_S
    while time.monotonic() < deadline_s:
        sandbox = await node.get(instance)
        if sandbox.state == SandboxState.LOST:
            raise LostError(sandbox.lost_reason, object=instance.instance_id)
        whole = sandbox.state in (SandboxState.WARM, SandboxState.RUNNING)
        if whole and sandbox.last_restore is not None and sandbox.last_restore.complete_us:
            return sandbox.last_restore
        await asyncio.sleep(POLL_S)
    raise DeadlineExceededError("the restore does not complete", object=instance.instance_id)
