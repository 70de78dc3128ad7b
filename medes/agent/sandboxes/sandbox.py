"""A sandbox as its agent holds it: what was registered, its state, and the handles of its dedup'd form."""

from __future__ import annotations

import asyncio
import dataclasses
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from medes import native
from medes.agent.node.admission import Slot
from medes.agent.node.time_mean import TimeMean
from medes.agent.sandboxes.op_cancel import OpCancel
from medes.agent.sandboxes.op_lock import OpLock
from medes.agent.sandboxes.states import may_follow
from medes.agent.sandboxes.working_sets import Page
from medes.drivers.driver import Handle
from medes.drivers.subject import Subject
from medes.errors import (
    BusyError,
    InternalError,
    MedesError,
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
HELD = (S.WARM, S.RUNNING, S.DEDUPING, S.RESTORING)  # all of their memory
SAVED_WINDOW_S = 600.0  # of the mean over the recent past, which a program that ticks needs
LATE_HOOKS_COUNTED_MAX = 7  # then 16 ms: what any answer over a local socket takes


@dataclass(frozen=True, slots=True)
class SandboxSpec:
    """What Register gave, apart from what the sandbox is (its subject); journalled, and repeated in the sandbox file's meta."""

    sandbox_id: str
    function: str
    tenant: str = ""
    domain: str = ""
    lifecycle: LifecycleSettings = field(default_factory=LifecycleSettings)
    driver: str = "live"
    hook_address: str = ""
    purge_kills: bool = False

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SandboxSpec:
        """Raises KeyError or TypeError for a record that no agent wrote."""
        known = {f.name for f in dataclasses.fields(cls)}
        values = {k: v for k, v in data.items() if k in known}
        periods = {f.name for f in dataclasses.fields(LifecycleSettings)}
        given = {k: v for k, v in values.get("lifecycle", {}).items() if k in periods}
        values["lifecycle"] = LifecycleSettings(**given)
        return cls(**values)


def to_record(spec: SandboxSpec, subject: Subject) -> dict[str, Any]:
    """A sandbox as the journal and its file's meta have it: the subject's keys beside the spec's."""
    return {**subject.to_json(), **spec.to_json()}


@dataclass(slots=True)
class Evicted:
    """The dedup'd form of a sandbox: its file, the bases it refers to, and the driver's handle."""

    file: native.SandboxFile
    bases: native.BaseSet
    live: Handle | None  # None: not taken back yet after a restart, its peers do not answer
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
    holdout: frozenset[Page] = frozenset()  # what a demand wake's prefetch leaves out
    tick_holdout: frozenset[Page] = (
        frozenset()
    )  # what was not left resident of the tick set, and not touched yet
    touches_learnt: int = 0
    placed_seen: int = 0  # pages that were back at the last look
    placed_since_s: float = 0.0  # since when so many
    reclaimed_s: float = 0.0  # when the last reclaim took pages away again; 0: none has
    reclaimed_pages: int = 0  # by that one
    reclaim_tried_s: float = 0.0  # the same, whatever came of it
    placed_learnt: int = 0
    weighed_s: float = 0.0  # when what it holds was last measured

    def sources(self, own_node: str) -> dict[str, str]:
        """Node → how its base pages are reached; the own node's are mapped."""
        own = {own_node: "local"} if self.pins.get(own_node) else {}
        return {**self.transport_by_peer, **own}

    @property
    def touched_bytes(self) -> int:
        """What came back of it page by page while it sleeps; as of the last look while there is no handle."""
        placed = self.live.placed_pages if self.live is not None else self.placed_seen
        return placed * native.PAGE_BYTES

    @property
    def handle(self) -> Handle:
        """The driver's handle. Raises busy while there is none."""
        if self.live is None:
            raise BusyError("it is not taken back yet", object=self.file.path)
        return self.live


@dataclass(slots=True)
class Pending:
    """A sandbox that waits to be taken back (medes.agent.ops.take_back)."""

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


class Held(NamedTuple):
    """Of a sandbox. freed: what it takes less than without Medes, base pages apart."""

    kept_bytes: int
    present_bytes: int
    touched_bytes: int
    freed_bytes: int


class SandboxEntry:
    """One sandbox. All fields are the event loop's, and set by the methods below; ops hold `lock` while they change the state."""

    def __init__(self, spec: SandboxSpec, subject: Subject, node_id: str, state: S, now_s: float) -> None:
        self.spec = spec
        self.subject = subject
        self.node_id = node_id
        self.state = state
        self.since_s = now_s
        self.lock = OpLock()
        self.requests = 0  # begun and not yet ended
        self.heard_s = now_s  # when the runtime last said that one began or ended
        self.reports_requests = False  # it has said so once
        self.used_s = now_s  # when it was last seen to work, told by processor time
        self._cpu_seen: tuple[float, float] | None = None  # when, and what it had used by then
        self._carried_seen: tuple[float, Mapping[int, int]] | None = None  # the same of its connections
        self.cancel: OpCancel | None = None  # of the dedup op under way
        self.evicted: Evicted | None = None
        self.previous: Previous | None = None
        self.pending: Pending | None = None
        self.leaving = 0  # purges under way
        self.ended_by: tuple[str, PurgeCause] | None = (
            None  # the purge that kills its processes: why, and by whom
        )
        self.completed = asyncio.Event()  # not set while RESTORING
        self.completed.set()
        self.warm_bytes = 0
        self.kept_at_op_bytes = 0
        self.tick_at_op_bytes = 0  # of it: what stayed as the function's tick set
        self.weighed_s = -math.inf  # when `warm_bytes` was last measured
        self.saved = TimeMean(now_s, SAVED_WINDOW_S)  # of `freed_bytes` less its share of base pages
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
        self._cpu_seen = self._carried_seen = None
        if not may_follow(before, after):
            raise InternalError(f"{before.label} → {after.label} is no transition", object=self.id)
        self.state = after
        self.since_s = now_s
        if after is S.RESTORING:
            self.completed.clear()
        else:
            self.completed.set()
        return before

    def recover(self, *, warm_bytes: int, dedup_count: int, is_base: bool) -> None:
        """What an agent before knew of it."""
        self.reason = "as it was when the agent started"
        self.warm_bytes, self.dedup_count, self.is_base = warm_bytes, dedup_count, is_base

    def recover_as_dedup(self, kept_bytes: int = 0, tick_bytes: int = 0) -> None:
        """What an agent before had made of it: no transition."""
        self.state = S.DEDUP
        self.kept_at_op_bytes, self.tick_at_op_bytes = kept_bytes, tick_bytes

    def recover_as_lost(self, reason: str, file: str) -> None:
        """The same. `file`: what is left of its memory."""
        self.state, self.lost_reason, self.lost_file = S.LOST, reason, file

    def explain(self, reason: str) -> None:
        """Why it is in its state."""
        self.reason = reason

    def look_at_use(self, now_s: float, cpu_s: float | None, busy_ratio: float) -> None:
        """`cpu_s`: processor time used by now; above `busy_ratio` of a processor since the last look it is in use."""
        before = self._cpu_seen
        self._cpu_seen = (now_s, cpu_s) if cpu_s is not None else None
        if before is None or cpu_s is None:
            return
        if cpu_s - before[1] > busy_ratio * (now_s - before[0]):
            self.used_s = now_s

    def look_at_traffic(self, now_s: float, carried: Mapping[int, int], busy_bytes_per_s: float) -> None:
        """`carried`: bytes by connection; more than so many a second since the last look, and it is in use."""
        before, self._carried_seen = self._carried_seen, (now_s, carried)
        if before is None:
            return
        seen_s, bytes_seen = before
        # A connection that is new has carried all of its bytes since.
        more = sum(max(0, count - bytes_seen.get(key, 0)) for key, count in carried.items())
        if more > busy_bytes_per_s * (now_s - seen_s):
            self.used_s = now_s

    def idle_s(self, now_s: float) -> float:
        """How long it has been in its state, a warm one since it was last in use."""
        return now_s - (max(self.since_s, self.used_s) if self.state is S.WARM else self.since_s)

    def begin_request(self, now_s: float) -> None:
        self.heard_s = now_s
        self.reports_requests = True
        self.requests += 1
        self.idle_wakes = 0

    def end_request(self, now_s: float | None = None) -> None:
        """`now_s`: nothing where it is not the runtime that says so."""
        if now_s is not None:
            self.heard_s = now_s
        self.requests = max(0, self.requests - 1)

    def end_all_requests(self) -> None:
        self.requests = 0

    def begin_op(self, reason: str) -> None:
        """Why the op under way began."""
        self.op_reason = reason

    def begin_dedup_op(self, cancel: OpCancel) -> None:
        self.cancel = cancel

    def end_dedup_op(self) -> None:
        """It can be cancelled no more."""
        self.cancel = None

    def pages_went(self) -> None:
        """The dedup op under way can be cancelled no more, and what it took over is of no more use."""
        self.previous = self.cancel = None

    def put_away(self, evicted: Evicted) -> None:
        """Its pages are out, or some are, or may be. Of an op here or of an agent before."""
        self.evicted = evicted

    def drop_previous(self) -> None:
        self.previous = None

    def come_back(self, previous: Previous | None) -> None:
        """Its last page is in: nothing of the dedup'd form is needed any more."""
        self.evicted = None
        self.kept_at_op_bytes = self.tick_at_op_bytes = 0
        self.weighed_s = -math.inf
        if previous is not None:
            self.previous = previous

    def leave(self) -> tuple[Evicted | None, Pending | None]:
        """It is forgotten: what is to be removed with it."""
        left = self.evicted, self.pending
        self.evicted = self.pending = None
        return left

    def wait_for(self, pending: Pending) -> None:
        self.pending = pending

    def wait_no_more(self) -> None:
        self.pending = None

    def weigh(self, warm_bytes: int, now_s: float) -> None:
        """What it holds with all its memory."""
        self.warm_bytes, self.weighed_s = warm_bytes, now_s

    def become_base(self) -> None:
        self.is_base = True

    def dedup_failed(self) -> None:
        self.dedup_failures += 1

    def dedup_measured(self, report: DedupReport, kept_at_op_bytes: int, tick_at_op_bytes: int = 0) -> None:
        """`kept_at_op_bytes`: without what it has touched since. `tick_at_op_bytes`: of it, the function's tick set."""
        self.kept_at_op_bytes, self.tick_at_op_bytes = kept_at_op_bytes, tick_at_op_bytes
        self.last_dedup = report
        self.dedup_count += 1
        self.dedup_failures = 0

    def weigh_asleep(self, kept_at_op_bytes: int) -> None:
        """The same, measured again."""
        self.kept_at_op_bytes = kept_at_op_bytes

    def restore_ready(self, report: RestoreReport) -> None:
        """It runs; the rest of its pages comes."""
        self.restore_count += 1
        self.last_restore = report

    def restored(self, report: RestoreReport) -> None:
        """With its last page in, for a request or by itself."""
        if report.demand_woken and not self.requests:
            self.idle_wakes += 1
        self.last_restore = report

    def lose(self, reason: str) -> None:
        self.lost_reason = reason

    def turn_up(self) -> None:
        """Its bytes have: it is lost no more."""
        self.lost_reason = ""

    def begin_purge(self) -> None:
        """No dedup op begins any more."""
        self.leaving += 1

    def end_purge(self) -> None:
        self.leaving -= 1

    def end_by(self, purge: tuple[str, PurgeCause] | None) -> None:
        """The purge that kills its processes; nothing: it could not."""
        self.ended_by = purge

    def hook_late(self) -> None:
        self.hooks_late = min(self.hooks_late + 1, LATE_HOOKS_COUNTED_MAX)

    def hook_answered(self) -> None:
        self.hooks_late = 0

    def record(self) -> dict[str, Any]:
        return to_record(self.spec, self.subject)

    def gone(self) -> bool:
        """(blocks) Whether it has ended, with all of which only is known that it waits for pages that are out; False where
        that cannot be told now."""
        if not self.subject.gone():
            return False
        if self.evicted is None:
            return True
        if self.evicted.live is not None:
            return not self.evicted.live.needed
        return not self.subject.needs(self.evicted.file)  # not taken back yet

    def idle_state(self) -> S:
        """The state of a sandbox with all its memory: running while requests are in it."""
        return S.RUNNING if self.requests else S.WARM

    @property
    def touched_bytes(self) -> int:
        """Of a dedup'd sandbox: what it touched and so has back. From any thread."""
        return self.held().touched_bytes

    @property
    def tick_bytes(self) -> int:
        """Of a dedup'd sandbox: what the last op left for it to tick with."""
        return self.tick_at_op_bytes if self.state is S.DEDUP else 0

    @property
    def present_bytes(self) -> int:
        """What its processes hold, as far as is known: of a dedup'd one by now, else as last measured. From any thread."""
        return self.held().present_bytes

    @property
    def kept_bytes(self) -> int:
        """Of a dedup'd sandbox: patches, tables and what is present, by now. From any thread."""
        return self.held().kept_bytes

    @property
    def freed_bytes(self) -> int:
        """What the sandbox itself takes less than without Medes, base pages apart. Negative: more. From any thread."""
        return self.held().freed_bytes

    def held(self) -> Held:
        """The four of one look at what it touched. From any thread."""
        state, evicted, previous = self.state, self.evicted, self.previous
        previous_bytes = previous.file.file_bytes if previous is not None else 0
        file_bytes = evicted.file.file_bytes if evicted is not None else 0
        if state is S.DEDUP:
            touched_bytes = evicted.touched_bytes if evicted is not None else 0
            kept_bytes = max(0, self.kept_at_op_bytes + touched_bytes)
            present_bytes = max(0, kept_bytes - file_bytes)
            freed_bytes = self.warm_bytes - kept_bytes - previous_bytes
            return Held(kept_bytes, present_bytes, touched_bytes, freed_bytes)
        # Until its last page is in, count all of its memory as back beside the file it comes from.
        present_bytes = self.warm_bytes if state in HELD else 0
        return Held(max(0, self.kept_at_op_bytes), present_bytes, 0, -file_bytes - previous_bytes)

    def view(self, now_s: float, base_share_bytes: int | None = None) -> Sandbox:
        """The sandbox as the restore API shows it; without its share, without what it saves."""
        evicted, held = self.evicted, self.held()
        return Sandbox(
            sandbox_id=self.id,
            function=self.spec.function,
            tenant=self.spec.tenant,
            domain=self.spec.domain,
            state=self.state,
            pids=self.subject.processes,
            subject=self.subject.name,
            driver=self.spec.driver,
            warm_bytes=self.warm_bytes,
            kept_bytes=held.kept_bytes if self.state in (S.DEDUP, S.RESTORING) else 0,
            touched_bytes=held.touched_bytes,
            present_bytes=held.present_bytes,
            tick_bytes=self.tick_bytes,
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
            saved_bytes=None if base_share_bytes is None else held.freed_bytes - base_share_bytes,
            mean_saved_bytes=round(self.saved.mean(now_s)),
            recent_saved_bytes=round(self.saved.recent(now_s)),
        )
