"""The agent of a node: its sandboxes, base store, pins, peers and journal, and what all ops share.

Everything here belongs to one event loop. Native calls release the GIL and run in the workers: `in_ops`, `in_restores`,
`in_watches` (medes.agent.node.workers).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from medes import native, plugins
from medes.agent.bases.accounting import Accounting, Made
from medes.agent.bases.bases import BaseStore, LocalBase
from medes.agent.bases.kept_pages import KeptPages
from medes.agent.bases.pins import PinTable
from medes.agent.bases.remote_index import RemoteIndex
from medes.agent.cluster.controller_link import ControllerLink
from medes.agent.controller_client import ControllerClient, Joined
from medes.agent.journal import records
from medes.agent.journal.journal_writer import JournalWriter
from medes.agent.node.admission import Admission
from medes.agent.node.observer import Observer
from medes.agent.node.pressure import Pressure, machine_bytes
from medes.agent.node.workers import Workers
from medes.agent.peer_client import PeerClient
from medes.agent.peers.domain_rights import DomainRights
from medes.agent.peers.peers import PeerTable, ReaderFactory
from medes.agent.sandboxes.sandbox import SandboxEntry, SandboxSpec
from medes.agent.sandboxes.watch import WatchHub
from medes.agent.sandboxes.working_sets import TICK_SET_SLICES, WorkingSetStore
from medes.agent.store.orphans import Orphan
from medes.certs.identity import Identity
from medes.chance import Chance
from medes.clock import Clock
from medes.config import AgentSettings
from medes.drivers.driver import Driver
from medes.drivers.registry import Drivers
from medes.drivers.subject import Subjects
from medes.errors import MedesError, NotFoundError
from medes.plugins import Kind
from medes.policy.policy import Event, Happening, PolicyClass
from medes.transport.choice import Transports
from medes.types import (
    BaseDescriptor,
    FunctionUsage,
    NodeEndpoints,
    NodeUsage,
    PurgeCause,
    Sandbox,
    SandboxEvent,
    SandboxRecord,
)
from medes.types import SandboxState as S

log = logging.getLogger(__name__)
T = TypeVar("T")


class Agent:
    """Shared state; the ops are functions of it (dedup_op, restore_op, recovery, handlers)."""

    def __init__(
        self,
        settings: AgentSettings,
        journal: JournalWriter,
        drivers: Drivers,
        *,
        controllers: Sequence[ControllerClient] = (),
        make_reader: ReaderFactory,
        transports: Transports | None = None,
        clock: Clock | None = None,
        observer: Observer | None = None,
        identity: Identity | None = None,
        workers: Workers | None = None,
        make_peer: Callable[[str, str], PeerClient] | None = None,
        chance: Chance | None = None,
    ) -> None:
        self.settings = settings
        self.node_id = settings.node
        self.clock = clock or Clock()
        self.chance = chance or Chance()
        self.observer = observer or Observer()
        kind: PolicyClass = plugins.load(Kind.POLICY, settings.policy)
        self.policy = kind.make(settings)
        self.policy_stale = True  # what it was last shown has changed
        self.journal = journal
        self.drivers = drivers
        self.entries: dict[str, SandboxEntry] = {}
        self.pins = PinTable()
        # (domain, function) → the sandbox of this node that was last advised to become a base
        self.base_advised: dict[tuple[str, str], str] = {}
        # holder → (domain, node → base ids) of dedup ops under way
        self.pins_of_ops: dict[str, tuple[str, dict[str, list[int]]]] = {}
        self.watch = WatchHub()
        self.pressure = Pressure(False, "unknown")
        # Told that another node pins bases of a domain here: it may read their pages from now on.
        self.on_pinned: Callable[[str, str], object] = lambda node_id, domain: None
        # What follows when a sandbox was taken back, wanted by a caller or not: the restore op's to say.
        self.on_taken_back: Callable[[SandboxEntry, bool], Awaitable[None]]
        # How long ago another node was last heard of as a reader of pages here, in seconds; none if it is none.
        self.silent_s: Callable[[str], float | None] = lambda node_id: None
        self.page_server_bytes: Callable[[], int] = lambda: 0
        self.endpoints = NodeEndpoints(self.node_id)
        self._tasks: set[asyncio.Task[Any]] = set()
        self.ending = asyncio.Event()
        self.remote_pages_by_transport: dict[str, int] = {}
        # Files of shm_dir that the agent does not know: path → what they are and why they were left alone.
        self.orphans: dict[str, Orphan] = {}
        self.working_sets = WorkingSetStore(Path(settings.state_dir) / "working-sets")
        self.tick_sets = WorkingSetStore(Path(settings.state_dir) / "tick-sets", TICK_SET_SLICES)
        self.admission = Admission(settings.restores_concurrent_max)
        self.dedup_turn = asyncio.Semaphore(settings.dedups_concurrent_max)
        self.dedups_queued = 0
        self._workers = workers or Workers(settings)
        self.in_ops = self._workers.ops
        self.in_own_thread = self._workers.own
        self.in_restores = self._workers.restores
        self.in_watches = self._workers.watches
        self.bases = self._make_bases()
        self.domain_rights = DomainRights(settings, identity)
        make_peer = make_peer or partial(PeerClient, self.node_id, identity=identity)
        self.peers = self._make_peers(make_peer, make_reader, transports)
        self.remote_index = self._make_index()
        self.kept_pages = KeptPages(settings.remote_pages_limit_bytes, settings.base_keep_period_s)
        memory_bytes = settings.memory_limit_bytes or machine_bytes()
        self.accounting = Accounting(
            self.entries,
            self.bases,
            self.remote_index,
            self.kept_pages,
            self.peers.base_uses,
            memory_bytes,
            self.clock,
        )
        self.controller = ControllerLink(
            controllers, self, self.clock, self.chance, memory_bytes, lambda: self.endpoints
        )

    def _make_bases(self) -> BaseStore:
        settings = self.settings
        k = int(self.journal.state.node.get("samples_per_page", settings.samples_per_page))
        return BaseStore(self.node_id, settings.shm_path, settings.base_store_limit_bytes, k, self.pins)

    def _make_peers(
        self,
        make_peer: Callable[[str, str], PeerClient],
        make_reader: ReaderFactory,
        transports: Transports | None,
    ) -> PeerTable:
        own_only = self.settings.transport == "local"
        peers = PeerTable(
            self.node_id, make_peer, make_reader, self._resolve, self._workers, transports, own_only=own_only
        )
        peers.on_endpoints = self._remember_peer
        peers.own_store = lambda: self.endpoints.store
        return peers

    def _make_index(self) -> RemoteIndex:
        index = RemoteIndex(
            self.peers.fingerprints,
            self.in_ops,
            self.spawn,
            lambda: self.bases.samples_per_page,
            self.settings.remote_index_limit_bytes,
        )
        self.peers.on_away = index.forget_node
        return index

    async def _resolve(self, node_id: str) -> NodeEndpoints | None:
        return await self.controller.resolve(node_id)

    def _remember_peer(self, endpoints: NodeEndpoints) -> None:
        if self.journal.state.peers.get(endpoints.node_id) != (record := endpoints_to_json(endpoints)):
            self.journal.post(records.peer(record))

    # --- running things ------------------------------------------------------------------------------------
    def spawn(self, coroutine: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """A task that outlives its caller; its failure is logged unless somebody awaits it."""
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)
        return task

    async def to_its_end(self, coroutine: Coroutine[Any, Any, T], name: str) -> T:
        """What it returns or raises. A caller that hangs up does not leave it half-done."""
        return await asyncio.shield(self.spawn(coroutine, name))

    @property
    def tasks(self) -> int:
        """How many tasks are under way."""
        return len(self._tasks)

    def _task_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            if isinstance(error, MedesError):  # told to whoever waits, and where it happened
                log.debug("%s: %s", task.get_name(), error)
            else:
                log.error("%s failed", task.get_name(), exc_info=error)

    async def drain(self, timeout_s: float) -> None:
        """Waits for spawned tasks, then cancels the rest."""
        tasks = {t for t in self._tasks if t is not asyncio.current_task()}
        if not tasks:
            return
        _, pending = await asyncio.wait(tasks, timeout=timeout_s)
        for task in pending:
            task.cancel()
        if pending:
            await asyncio.wait(pending, timeout=timeout_s)

    @property
    def stopping(self) -> bool:
        return self.ending.is_set()

    def close_executors(self) -> None:
        self.drivers.close_subjects()
        self._workers.close()

    # --- sandboxes -----------------------------------------------------------------------------------------
    def entry(self, sandbox_id: str) -> SandboxEntry:
        """Raises not_found."""
        found = self.entries.get(sandbox_id)
        if found is None:
            raise NotFoundError("no such sandbox on this node", object=sandbox_id or "(empty id)")
        return found

    def by_path(self, path: str) -> SandboxEntry | None:
        """The sandbox whose encoded form is this file, or becomes it in a dedup op under way."""
        for entry in self.entries.values():
            if entry.evicted is not None and entry.evicted.file.path == path:
                return entry
            if entry.state is S.DEDUPING and str(self.sandbox_path(entry.id)) == path:
                return entry
        return None

    def sandbox_path(self, sandbox_id: str) -> Path:
        return self.settings.shm_path / f"sandbox-{sandbox_id}.medes"

    def view(self, entry: SandboxEntry, made: Made | None = None) -> Sandbox:
        """The sandbox as the restore API shows it to who looks. `made`: see Accounting.unpinned_by_maker."""
        return entry.view(self.clock.now_s(), self.accounting.share_bytes(entry, made))

    def driver_of(self, entry: SandboxEntry) -> Driver:
        return self.drivers.running[entry.spec.driver]

    def subjects_of(self, spec: SandboxSpec) -> Subjects:
        """What made its subject, whether its driver runs here or not."""
        return self.drivers.subjects_of(spec.driver)

    def move(
        self, entry: SandboxEntry, after: S, reason: str, cause: PurgeCause = PurgeCause.UNSPECIFIED
    ) -> None:
        """Changes a sandbox's state and tells everybody who wants to know. `cause`: of state PURGED."""
        now_s = self.clock.now_s()
        before = entry.move(after, now_s)
        entry.explain(reason)
        # Requests come by the hundred a second.
        by_request = {before, after} == {S.RUNNING, S.WARM}
        if not by_request:
            self.accounting.look_at(entry)
        level = logging.DEBUG if by_request else logging.INFO
        level = logging.ERROR if after is S.LOST else level
        log.log(level, "%s: %s → %s: %s", entry.id, before.label, after.label, reason)
        self.tell(entry, before, reason, cause)
        self.observe(Happening.STATE, entry)

    def observe(
        self, what: Happening, entry: SandboxEntry, *, seconds: float = 0.0, kept_bytes: int = 0
    ) -> None:
        """Tells the policy."""
        self.policy_stale = True
        self.policy.observe(
            Event(self.clock.now_s(), what, entry.id, entry.spec.function, entry.state, seconds, kept_bytes)
        )

    def tell(
        self, entry: SandboxEntry, before: S, reason: str, cause: PurgeCause = PurgeCause.UNSPECIFIED
    ) -> None:
        sequence = self.watch.next_sequence()
        if self.watch.watched:
            view = entry.view(self.clock.now_s())
            self.watch.publish(SandboxEvent(view, before, reason, sequence, cause))
        self.controller.changed(entry.id)

    def lose(self, entry: SandboxEntry, reason: str, *, final: bool = True) -> None:
        """The right bytes cannot be produced: the sandbox never runs on. Not `final`: they are absent, and whoever calls
        goes on looking for them."""
        if entry.state in (S.LOST, S.PURGED):
            return
        entry.lose(reason)
        self.observer.lost()
        self.journal.post(records.lost(entry.id, reason, final=final))
        self.move(entry, S.LOST, reason)

    # --- memory --------------------------------------------------------------------------------------------
    def refused(self, base_ids: Collection[int]) -> None:
        """Their holder has these bases no more, or does not answer for them: nothing that is known of them is believed."""
        self.remote_index.forget(base_ids)
        self.kept_pages.forget(base_ids)

    def pinned_bases(self) -> set[int]:
        """Of this and other nodes: by its sandboxes and the dedup ops under way."""
        pins = [found[1] for e in self.entries.values() if (found := e.pins()) is not None]
        pins += [by_node for _, by_node in self.pins_of_ops.values()]
        return {base_id for by_node in pins for base_ids in by_node.values() for base_id in base_ids}

    def drop_previous(self) -> None:
        """Memory is short: the next dedup ops encode everything again."""
        for entry in self.entries.values():
            entry.drop_previous()

    @property
    def remote_pages_read(self) -> int:
        """Base pages that were read from peers, since the agent began."""
        return sum(self.remote_pages_by_transport.values())

    def count_remote(self, transport: str, pages: int) -> None:
        """Adds base pages that were read from peers."""
        by_transport = self.remote_pages_by_transport
        by_transport[transport] = by_transport.get(transport, 0) + pages
        self.observer.remote_pages(transport, pages)

    # --- what the controller link asks for -----------------------------------------------------------------
    def usage(self) -> NodeUsage:
        return self.accounting.usage()

    def function_usage(self) -> tuple[FunctionUsage, ...]:
        return self.accounting.function_usage()

    def record(self, sandbox_id: str) -> SandboxRecord | None:
        entry = self.entries.get(sandbox_id)
        if entry is None:
            return SandboxRecord(sandbox_id, self.node_id, "", state=S.PURGED)
        return self._record(entry)

    def _record(self, entry: SandboxEntry) -> SandboxRecord:
        return SandboxRecord(
            entry.id,
            self.node_id,
            entry.spec.function,
            entry.spec.domain,
            entry.state,
            entry.warm_bytes,
            entry.kept_bytes if entry.state is S.DEDUP else 0,
            entry.is_base,
        )

    def all_records(self) -> list[SandboxRecord]:
        return [self._record(e) for e in self.entries.values()]

    async def unannounced_bases(self, *, all_bases: bool) -> list[tuple[BaseDescriptor, native.Fingerprints]]:
        wanted = [b for b in self.bases.bases.values() if not b.retired and (all_bases or not b.announced)]
        return [(b.descriptor, await self.in_ops(self._fingerprint, b)) for b in wanted]

    def _fingerprint(self, base: LocalBase) -> native.Fingerprints:
        return base.slab.fingerprint(self.bases.samples_per_page)

    def base_announced(self, base_id: int) -> None:
        if base_id in self.bases.bases:
            self.bases.bases[base_id].announced = True

    async def joined(self, joined: Joined) -> None:
        """Takes over the cluster's number of samples; bases known under another one are fingerprinted again."""
        k = joined.samples_per_page
        if not 1 <= k <= native.MAX_SAMPLES:
            raise NotFoundError(f"the controller wants {k} samples a page", object=self.node_id)
        if k != self.bases.samples_per_page:
            log.info("samples per page: %d → %d", self.bases.samples_per_page, k)
            self.bases.samples_per_page = k
            self.remote_index.clear()
            found = await self.unannounced_bases(all_bases=True)
            self.bases.rebuild(found)
        if self.journal.state.node.get("samples_per_page") != k:
            await self.journal.write(records.node(samples_per_page=k))


def endpoints_to_json(endpoints: NodeEndpoints) -> dict[str, Any]:
    return {
        "node_id": endpoints.node_id,
        "grpc_address": endpoints.grpc_address,
        "page_address": endpoints.page_address,
        "transports": list(endpoints.transports),
        "store": endpoints.store,
    }


def endpoints_from_json(data: dict[str, Any]) -> NodeEndpoints:
    return NodeEndpoints(
        str(data["node_id"]),
        str(data.get("grpc_address", "")),
        str(data.get("page_address", "")),
        tuple(data.get("transports", ())),
        str(data.get("store", "")),
    )
