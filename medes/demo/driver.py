"""The demo's steps: deploy, warm, dedup, restore, check. Each takes the progress bar it advances."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from medes.demo.cluster import Cluster
from medes.errors import DeadlineExceededError, MedesError
from medes.quantiles import median_or_none
from medes.runtimes.host.hosted_instance import HostedInstance
from medes.runtimes.manifest import FunctionSpec
from medes.types import DedupReport, SandboxState

INSTANCES_DEFAULT = 3
RECORD_SEED = 900  # input of the restores that record working sets
WARM_INPUTS = 3
WARM_SAMPLES = 5
COMPLETE_TIMEOUT_S = 60.0
POLL_S = 0.005

Advance = Callable[[], None]


@dataclass
class InstanceRecord:
    """What happened to one instance; None where it did not come to that."""

    instance: HostedInstance
    answer: Any = None
    cold_start_ms: float = 0.0
    warm_ms: list[float] = field(default_factory=list)
    dedup: DedupReport | None = None
    kept_bytes: int = 0
    base_share_bytes: int = 0
    first_response_ms: float | None = None
    complete_ms: float | None = None
    answered_as_before: bool = False
    restored: bool = False


@dataclass
class FunctionRecord:
    """One function of the demo and what was measured."""

    spec: FunctionSpec
    instances: list[InstanceRecord] = field(default_factory=list)

    @property
    def dedupd(self) -> list[InstanceRecord]:
        return [record for record in self.instances if record.dedup is not None]

    def state_verified(self) -> bool | None:
        """Whether every restored instance answered as before with all its pages checked; None where the function
        does not promise equal answers."""
        came_back = bool(self.dedupd) and all(record.restored for record in self.dedupd)
        if not came_back or not all(record.answered_as_before for record in self.dedupd):
            return False
        return True if self.spec.idempotent else None

    def summary(self) -> dict[str, Any]:
        """The function's entry of the JSON report."""
        warm_bytes = sum(r.dedup.warm_bytes for r in self.dedupd if r.dedup)
        kept_bytes = sum(r.kept_bytes for r in self.dedupd)
        base_share_bytes = sum(r.base_share_bytes for r in self.dedupd)
        return {
            "name": self.spec.name,
            "instances": len(self.instances),
            "dedup_count": len(self.dedupd),
            "warm_bytes": warm_bytes,
            "kept_bytes": kept_bytes,
            "base_share_bytes": base_share_bytes,
            "gross_saved_ratio": _ratio(warm_bytes - kept_bytes, warm_bytes),
            "saved_ratio": _ratio(warm_bytes - kept_bytes - base_share_bytes, warm_bytes),
            "dedup_ms_p50": p50([r.dedup.total_us / 1000 for r in self.dedupd if r.dedup]),
            "cold_start_ms_p50": p50([r.cold_start_ms for r in self.instances]),
            "warm_ms_p50": p50([ms for r in self.instances for ms in r.warm_ms]),
            "restore_first_response_ms_p50": p50([r.first_response_ms for r in self.dedupd]),
            "restore_complete_ms_p50": p50([r.complete_ms for r in self.dedupd]),
            "state_verified": self.state_verified(),
        }


class Demo:
    """Runs the steps on a cluster. `failures` collects what went wrong without ending the demo."""

    def __init__(self, cluster: Cluster, specs: Sequence[FunctionSpec], instances: int | None = None) -> None:
        self.cluster = cluster
        self.functions = [FunctionRecord(spec) for spec in specs]
        self.instances = instances
        self.failures: list[str] = []
        self.transports: set[str] = set()
        self.base_bytes = 0
        self.base_pages_read_remote = 0

    @property
    def host(self) -> Any:
        return self.cluster.host

    def instances_of(self, record: FunctionRecord) -> int:
        """How many instances of a function there are to be: what was asked for, else what it declares."""
        return self.instances or record.spec.instances or INSTANCES_DEFAULT

    @property
    def instance_count(self) -> int:
        return sum(self.instances_of(record) for record in self.functions)

    async def deploy(self, advance: Advance) -> None:
        """Cold-starts every instance, one after the other, each with its first answer. Raises what a function
        that does not load raises."""
        for record in self.functions:
            for number in range(self.instances_of(record)):
                if number == 0:
                    (instance,) = await self.host.deploy(record.spec, 1)
                else:
                    instance = await self.host.add_instance(self.host.functions[record.spec.name])
                first = await self._invoke(instance, record.spec.event)
                record.instances.append(
                    InstanceRecord(instance, cold_start_ms=instance.cold_start_ms + first.total_ms)
                )
                advance()

    async def record(self, advance: Advance) -> None:
        """One dedup and restore of each instance that is not measured: its node learns which pages the function
        touches first. With another input than the one measured later, as a function in service would have it."""
        for record, entry in self._entries():
            await self._settled(entry.instance)
            try:
                await self.host.dedup(entry.instance)
                await self._invoke(entry.instance, record.spec.seeded_event(RECORD_SEED))
                await self._wait_complete(entry.instance)
            except MedesError as error:
                self.failures.append(f"{entry.instance.instance_id}: recording: {error}")
            advance()

    async def warm(self, advance: Advance) -> None:
        """Gives each instance inputs of its own, then takes its answer to the function's event and warm times."""
        for number, (record, entry) in enumerate(self._entries()):
            for request in range(WARM_INPUTS):
                await self._invoke(entry.instance, record.spec.seeded_event(1000 + 17 * number + request))
            for sample in range(WARM_SAMPLES):
                answer = await self._invoke(entry.instance, record.spec.event)
                entry.warm_ms.append(answer.total_ms)
                if sample and record.spec.idempotent and answer.result != entry.answer:
                    self.failures.append(
                        f"{entry.instance.instance_id}: not idempotent, though function.toml says so"
                    )
                entry.answer = answer.result
            advance()

    async def dedup(self, advance: Advance) -> None:
        """Dedups every instance. The first of each function becomes a base, and is dedup'd against it."""
        for _, entry in self._entries():
            await self._settled(entry.instance)
            try:
                result = await self.host.dedup(entry.instance)
            except MedesError as error:
                self.failures.append(f"{entry.instance.instance_id}: dedup: {error}")
            else:
                entry.dedup = result.report
                entry.kept_bytes = result.sandbox.kept_bytes
                self.transports |= set(result.sandbox.transport_by_peer.values()) - {"local"}
            advance()
        await self._read_shares()
        await self._read_nodes()

    async def restore(self, advance: Advance) -> None:
        """Sends each dedup'd instance its event again, which restores it, and compares the answers."""
        for record, entry in self._entries():
            if entry.dedup is not None:
                try:
                    await self._restore(record, entry)
                except MedesError as error:
                    self.failures.append(f"{entry.instance.instance_id}: restore: {error}")
            advance()
        await self._read_nodes()

    def report(self, transport: str) -> dict[str, Any]:
        """The JSON report."""
        functions = [record.summary() for record in self.functions]
        warm_bytes = sum(f["warm_bytes"] for f in functions)
        kept_bytes = sum(f["kept_bytes"] for f in functions)
        return {
            "nodes": len(self.cluster.agents),
            "transport": "+".join(sorted(self.transports)) or ("local" if transport == "auto" else transport),
            "functions": functions,
            "cluster": {
                "warm_bytes": warm_bytes,
                "kept_bytes": kept_bytes,
                "base_bytes": self.base_bytes,
                "gross_saved_ratio": _ratio(warm_bytes - kept_bytes, warm_bytes),
                "saved_ratio": _ratio(warm_bytes - kept_bytes - self.base_bytes, warm_bytes),
                "base_pages_read_remote": self.base_pages_read_remote,
            },
        }

    def succeeded(self) -> bool:
        """Nothing failed, everything was dedup'd, and every restored instance proved its state."""
        whole = all(
            len(record.dedupd) == len(record.instances) and record.state_verified() is not False
            for record in self.functions
        )
        return whole and not self.failures

    # --- steps of steps --------------------------------------------------------------------------------------
    def _entries(self) -> list[tuple[FunctionRecord, InstanceRecord]]:
        return [(record, entry) for record in self.functions for entry in record.instances]

    async def _invoke(self, instance: HostedInstance, event: Any) -> Any:
        return await self.host.invoke(instance.spec.name, event, instance_id=instance.instance_id)

    async def _settled(self, instance: HostedInstance) -> None:
        while instance.busy:  # noqa: ASYNC110 (the end of the last request is being reported)
            await asyncio.sleep(POLL_S)

    async def _restore(self, record: FunctionRecord, entry: InstanceRecord) -> None:
        answer = await self._invoke(entry.instance, record.spec.event)
        entry.first_response_ms = answer.total_ms
        same = answer.result == entry.answer or not record.spec.idempotent
        entry.complete_ms = await self._wait_complete(entry.instance)
        # Once more with every page back: the first answer may have come before the last page did.
        again = await self._invoke(entry.instance, record.spec.event)
        entry.answered_as_before = same and (again.result == entry.answer or not record.spec.idempotent)
        entry.restored = True
        if not entry.answered_as_before:
            self.failures.append(f"{entry.instance.instance_id}: answered otherwise after the restore")

    async def _wait_complete(self, instance: HostedInstance) -> float:
        """Milliseconds the restore took to its last page. Raises the loss, or deadline_exceeded."""
        node = self.host.nodes[instance.node_id]
        deadline_s = time.monotonic() + COMPLETE_TIMEOUT_S
        while True:
            sandbox = await node.get(instance)
            if sandbox.state == SandboxState.LOST:
                raise MedesError(f"lost: {sandbox.lost_reason}", object=instance.instance_id)
            if sandbox.last_restore is not None and sandbox.last_restore.complete_us:
                return sandbox.last_restore.complete_us / 1000
            if time.monotonic() > deadline_s:
                raise DeadlineExceededError(
                    f"the restore is not complete after {COMPLETE_TIMEOUT_S:g} s", object=instance.instance_id
                )
            await asyncio.sleep(POLL_S)

    async def _read_shares(self) -> None:
        """Only when all are dedup'd: each sandbox that uses a base makes the others' share of it smaller."""
        statuses = [await node.status() for node in self.host.nodes.values()]
        part_bytes = {b.base.base_id: b.bytes // max(1, b.pins) for status in statuses for b in status.bases}
        for _, entry in self._entries():
            if entry.dedup is not None:
                bases = (await self.host.nodes[entry.instance.node_id].explain(entry.instance)).bases
                entry.base_share_bytes = sum(part_bytes.get(b.base_id, 0) for b in bases)

    async def _read_nodes(self) -> None:
        statuses = [await node.status() for node in self.host.nodes.values()]
        self.base_bytes = max(self.base_bytes, sum(status.base_bytes for status in statuses))
        self.base_pages_read_remote = sum(status.base_pages_read_remote for status in statuses)


def p50(values: Sequence[float | None]) -> float | None:
    """The median in milliseconds, or None where nothing was measured."""
    return median_or_none(values)


def _ratio(part: int, whole: int) -> float:
    return round(part / whole, 4) if whole else 0.0
