"""A sandbox as its agent holds it: what was registered, its state, and the handles of its dedup'd form."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from medes import native
from medes.agent.admission import Slot
from medes.agent.drivers import LiveHandle
from medes.agent.op_cancel import OpCancel
from medes.agent.processes import runs
from medes.agent.states import may_follow
from medes.agent.working_sets import Page
from medes.errors import (
    BusyError,
    InternalError,
    InvalidArgumentError,
    MedesError,
    NotFoundError,
    ProcessGoneError,
)
from medes.types import (
    BaseDescriptor,
    DedupReport,
    LifecycleSettings,
    NodeEndpoints,
    OpRecord,
    PurgeCause,
    RestoreReport,
    Sandbox,
)
from medes.types import SandboxState as S

OPS_REMEMBERED = 16


@dataclass(frozen=True, slots=True)
class SandboxSpec:
    """What Register gave; journalled, and repeated in the sandbox file's meta."""

    sandbox_id: str
    function: str
    tenant: str = ""
    domain: str = ""
    pids: tuple[int, ...] = ()  # roots
    start_times: tuple[int, ...] = ()  # of the roots, in clock ticks: a reused pid is somebody else's process
    cgroup: str = ""
    lifecycle: LifecycleSettings = field(default_factory=LifecycleSettings)
    driver: str = "live"
    hook_address: str = ""
    purge_kills: bool = False
    others: tuple[
        tuple[int, int], ...
    ] = ()  # (pid, start time) of what the roots forked: medes.agent.members
    seen: tuple[
        int, ...
    ] = ()  # per root: what the machine had forked when it was last seen running, or some time before

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> SandboxSpec:
        """Raises KeyError or TypeError for a record that no agent wrote."""
        known = {f.name for f in dataclasses.fields(cls)}
        values = {k: v for k, v in data.items() if k in known}
        for name in ("pids", "start_times", "seen"):
            values[name] = tuple(values.get(name, ()))
        values["others"] = tuple((int(pid), int(ticks)) for pid, ticks in values.get("others", ()))
        periods = {f.name for f in dataclasses.fields(LifecycleSettings)}
        given = {k: v for k, v in values.get("lifecycle", {}).items() if k in periods}
        values["lifecycle"] = LifecycleSettings(**given)
        return cls(**values)

    def living(self) -> list[int]:
        """The roots and what is known of those they forked, as far as they still run; those that cannot be looked at now
        count as running. A cgroup's sandbox: its processes. Raises what keeps its cgroup from being read."""
        if self.cgroup:
            try:
                return native.cgroup_pids(self.cgroup)
            except NotFoundError:
                return []
        return [p for p, t in self.known() if runs(p, t)]

    def known(self) -> list[tuple[int, int]]:
        """(pid, start time) of the roots, then of what is known of those they forked."""
        return [*zip(self.pids, self.start_times, strict=False), *self.others]

    def seen_so(self) -> tuple[int, ...]:
        """`seen`, of every root."""
        return self.seen if len(self.seen) == len(self.pids) else (0,) * len(self.pids)

    def gone(self) -> bool:
        """Whether its roots and all that is known of what they forked have exited; False where that cannot be told now."""
        try:
            return not self.living()
        except MedesError:
            return False

    def processes(self) -> list[int]:
        """All processes of the sandbox, roots first. Raises process_gone when none is left."""
        living = self.living()
        if not living:
            raise ProcessGoneError("its processes have exited", object=self.sandbox_id)
        if self.cgroup:
            pids = living
        else:
            roots = [p for p in living if p in self.pids]
            pids = native.process_tree(roots) if roots else []
            if left := [p for p in living if p not in pids]:  # what they forked has outlived its parents
                pids += [p for p in native.process_tree(left) if p not in pids]
        if os.getpid() in pids:
            # Whoever moved the agent into the sandbox's cgroup: it would stop itself, for good.
            raise InvalidArgumentError("the agent itself is in this sandbox", object=self.sandbox_id)
        return pids


@dataclass(slots=True)
class Evicted:
    """The dedup'd form of a sandbox: its file, the bases it refers to, and the driver's handle."""

    file: native.SandboxFile
    bases: native.BaseSet
    live: LiveHandle | None  # None: not taken back yet after a restart, its peers do not answer
    holder: str  # the holder id of its pins
    pins: dict[str, list[int]]  # node → base ids
    descriptors: dict[int, BaseDescriptor]  # of the remote bases
    endpoints: dict[str, NodeEndpoints]  # of the nodes that hold them
    transport_by_peer: dict[str, str] = field(
        default_factory=dict
    )  # other nodes, when their reader was opened
    since_s: float = 0.0
    remote_pages_before: dict[str, int] = field(default_factory=dict)  # what encoding had read, by transport
    stage_us: dict[str, int] = field(default_factory=dict)  # of the restore, before pages move
    waited_us: int = 0  # for it, until the sandbox ran
    slot: Slot | None = None  # of the restore under way
    probe: frozenset[Page] = frozenset()  # what a demand wake's prefetch leaves out

    def sources(self, own_node: str) -> dict[str, str]:
        """Node → how its base pages are reached; the own node's are mapped."""
        own = {own_node: "local"} if self.pins.get(own_node) else {}
        return {**self.transport_by_peer, **own}

    @property
    def handle(self) -> LiveHandle:
        """The driver's handle. Raises busy while there is none."""
        if self.live is None:
            raise BusyError("it is not taken back yet", object=self.file.path)
        return self.live


@dataclass(slots=True)
class Pending:
    """A sandbox that waits to be taken back (medes.agent.take_back)."""

    path: str  # of its file
    error: MedesError  # what stands in the way
    wanted: bool = False  # to be restored when it is back
    # What is known of its pins while the file could not be opened.
    holder: str = ""
    pins: dict[str, list[int]] = field(default_factory=dict)


@dataclass(slots=True)
class Previous:
    """The dedup'd form that a warm sandbox was restored from: the next dedup op takes over what did not change.

    The file has no name any more; its memory goes with this object. Its bases are not pinned: the op asks anew.
    """

    file: native.SandboxFile
    descriptors: dict[int, BaseDescriptor]  # of the remote bases


class SandboxEntry:
    """One sandbox. All fields are the event loop's; ops hold `lock` while they change the state."""

    def __init__(self, spec: SandboxSpec, node_id: str, state: S, now_s: float) -> None:
        self.spec = spec
        self.node_id = node_id
        self.state = state
        self.since_s = now_s
        self.lock = asyncio.Lock()
        self.requests = 0  # begun and not yet ended
        self.heard_s = now_s  # when the runtime last said that one began or ended
        self.cancel: OpCancel | None = None  # of the dedup op under way
        self.evicted: Evicted | None = None
        self.previous: Previous | None = None
        self.pending: Pending | None = None
        self.leaving = 0  # purges under way
        self.ended_by: tuple[str, PurgeCause] | None = (
            None  # the purge that kills its processes: why, and by whom
        )
        # Root → what the whole machine had forked when that was last seen running (medes.agent.members).
        self.roots_seen: dict[int, int] = {}
        self.completed = asyncio.Event()  # not set while RESTORING
        self.completed.set()
        self.warm_bytes = 0
        self.kept_bytes = 0
        self.is_base = False
        self.dedup_count = 0
        self.restore_count = 0
        self.idle_wakes = 0
        self.hooks_late = 0  # in a row
        self.dedup_failures = 0
        self.last_dedup: DedupReport | None = None
        self.last_restore: RestoreReport | None = None
        self.lost_reason = ""
        self.reason = "registered"  # why it is in its state
        self.op_reason = ""  # why the op under way began
        self.ops: deque[tuple[float, OpRecord]] = deque(maxlen=OPS_REMEMBERED)  # when it ended, what it was
        self.lost_file = ""  # of a lost sandbox that was not taken back: what is left of its memory

    @property
    def id(self) -> str:
        return self.spec.sandbox_id

    def pins(self) -> tuple[str, dict[str, list[int]]] | None:
        """Holder id and node → base ids of the pins that its dedup'd form needs, taken back or not."""
        if self.evicted is not None:
            return self.evicted.holder, self.evicted.pins
        if self.pending is not None and self.pending.holder:
            return self.pending.holder, self.pending.pins
        return None

    def move(self, after: S, now_s: float) -> S:
        """Changes the state as the table allows; returns the state before. Raises internal otherwise."""
        before = self.state
        if not may_follow(before, after):
            raise InternalError(f"{before.label} → {after.label} is no transition", object=self.id)
        self.state = after
        self.since_s = now_s
        if after is S.RESTORING:
            self.completed.clear()
        else:
            self.completed.set()
        return before

    def gone(self) -> bool:
        """(blocks) Whether its processes have exited, those included of which only is known that they wait for pages that
        are out; False where that cannot be told now."""
        if not self.spec.gone():
            return False
        if self.evicted is None:
            return True
        if self.evicted.live is not None:
            return not self.evicted.live.needed
        file = self.evicted.file  # not taken back yet
        return not any(runs(p, t) for p, t in zip(file.pids, file.start_times, strict=True))

    def idle_state(self) -> S:
        """The state of a sandbox with all its memory: running while requests are in it."""
        return S.RUNNING if self.requests else S.WARM

    @property
    def freed_bytes(self) -> int:
        """What the sandbox itself takes less than without Medes, base pages apart. Negative: more. From any thread."""
        evicted, previous, freed = self.evicted, self.previous, 0
        if self.state is S.DEDUP:
            freed = self.warm_bytes - self.kept_bytes
        elif evicted is not None:
            # Until its last page is in, count all of its memory as back beside the file it comes from.
            freed = -evicted.file.file_bytes
        return freed - (previous.file.file_bytes if previous is not None else 0)

    def view(self, now_s: float, base_share_bytes: int | None = None) -> Sandbox:
        """The sandbox as the restore API shows it; without its share, without what it saves."""
        evicted = self.evicted
        return Sandbox(
            sandbox_id=self.id,
            function=self.spec.function,
            tenant=self.spec.tenant,
            domain=self.spec.domain,
            state=self.state,
            pids=self.spec.pids,
            driver=self.spec.driver,
            warm_bytes=self.warm_bytes,
            kept_bytes=self.kept_bytes if self.state in (S.DEDUP, S.RESTORING) else 0,
            is_base=self.is_base,
            state_age_ms=max(0, int((now_s - self.since_s) * 1000)),
            dedup_count=self.dedup_count,
            restore_count=self.restore_count,
            transport_by_peer=evicted.sources(self.node_id) if evicted else {},
            last_dedup=self.last_dedup,
            last_restore=self.last_restore,
            lost_reason=self.lost_reason,
            waiting=f"{self.pending.error.code}: {self.pending.error}" if self.pending is not None else "",
            node_id=self.node_id,
            base_share_bytes=base_share_bytes,
            saved_bytes=None if base_share_bytes is None else self.freed_bytes - base_share_bytes,
        )
