"""Typed values that travel between the parts of Medes: what the protobuf messages hold, without protobuf.

Field names equal those of proto/medes/v1, which is what `medes.rpc.convert` relies on (a test compares them).
Sizes are in bytes, durations in the unit that ends the name.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# How a page is stored (docs/patch-format.md), in the order in which reports give their numbers.


class _Labelled(enum.IntEnum):
    """Numbers are those of the wire; people are shown the label."""

    @property
    def label(self) -> str:
        """Lower-case name, as shown to users."""
        return self.name.lower()

    def __str__(self) -> str:
        return self.label

    def __format__(self, spec: str) -> str:
        return format(self.label, spec)


class SandboxState(_Labelled):
    """The state of a sandbox."""

    UNSPECIFIED = 0
    RUNNING = 1
    WARM = 2
    DEDUPING = 3
    DEDUP = 4
    RESTORING = 5
    LOST = 6
    PURGED = 7


class Activity(_Labelled):
    """What a runtime reports about requests in a sandbox."""

    UNSPECIFIED = 0
    BEGUN = 1
    ENDED = 2


class PurgeCause(_Labelled):
    """Why a sandbox is PURGED."""

    UNSPECIFIED = 0
    ASKED = 1
    TIMER = 2  # a period of its lifecycle is over
    EXITED = 3  # its processes have


class NoteCode(enum.IntEnum):
    """What a note of a report is about; numbers are those of the wire."""

    UNSPECIFIED = 0
    PAGES_STAY = 1  # mlocked, pinned by a device, a stack in use, …: the text says what
    SHARED_OUTSIDE = 2
    SHARED_BY_FORK = 3
    NO_ROOM_FOR_COPIES = 4
    TAKEN_OVER = 5
    NOTHING_TAKEN_OVER = 6
    REMOTE_BASES_UNUSED = 7
    BASE_GONE = 8
    NO_BASE_NEEDED = 9
    OWN_BASES_ONLY = 10
    HOOK_FAILED = 11
    TICK_SET = 12
    RECLAIMED = 13

    @property
    def label(self) -> str:
        """Lower-case name, as shown to users."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Note:
    """Something that an op's caller may want to know: a code for programs, a text for people."""

    code: NoteCode
    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class AddressRange:
    """Half-open range of virtual addresses."""

    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class BaseDescriptor:
    """A base: pages kept whole, immutable once published. `holders`: the nodes that keep them, never none."""

    base_id: int
    holders: tuple[str, ...]
    domain: str
    function: str = ""
    page_count: int = 0
    ranges: tuple[AddressRange, ...] = ()
    value_only: bool = False

    def __post_init__(self) -> None:
        if not self.holders:
            raise ValueError("a base without a holder")

    def nearest(self, node_id: str) -> str:
        """The holder that a node reads from and pins at: itself where it is one, else the first."""
        return node_id if node_id in self.holders else self.holders[0]

    def without(self, node_id: str) -> BaseDescriptor | None:
        """As it is when a node holds it no more; None when nobody does."""
        left = tuple(h for h in self.holders if h != node_id)
        return dataclasses.replace(self, holders=left) if left else None

    def to_json(self) -> dict[str, Any]:
        """As journals, sandbox files and registry records have it. One holder is written as `node_id`: readers from before
        there were `holders` know no other key."""
        data = dataclasses.asdict(self)
        if len(self.holders) == 1:
            data["node_id"] = data.pop("holders")[0]
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> BaseDescriptor:
        """Keys of newer versions are left alone. Raises key_error, type_error or value_error for another shape."""
        holders = data["holders"] if "holders" in data else [data["node_id"]]
        if not isinstance(holders, (list, tuple)) or not all(isinstance(h, str) for h in holders):
            raise ValueError("holders are none")
        known = {f.name: data[f.name] for f in dataclasses.fields(cls) if f.name in data}
        ranges = tuple(AddressRange(int(r["begin"]), int(r["end"])) for r in data["ranges"])
        return cls(**{**known, "holders": tuple(holders), "ranges": ranges})


@dataclass(frozen=True, slots=True)
class NodeEndpoints:
    """Where a node's peer service and page server listen ("host:port")."""

    node_id: str
    grpc_address: str = ""
    page_address: str = ""
    transports: tuple[str, ...] = ()
    store: str = ""  # whose base store this is, see medes.agent.journal.store_identity


@dataclass(frozen=True, slots=True)
class NodeUsage:
    """Memory and sandbox counts of one node."""

    memory_bytes: int = 0
    warm_bytes: int = 0
    kept_bytes: int = 0
    base_bytes: int = 0
    sandboxes_running: int = 0
    sandboxes_warm: int = 0
    sandboxes_dedup: int = 0
    gross_saved_bytes: int = 0
    saved_bytes: int = 0
    present_bytes: int = 0
    tick_bytes: int = 0
    touched_bytes: int = 0
    mean_saved_bytes: int | None = None
    recent_saved_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class FunctionUsage:
    """A function's (and tenant's) sandboxes on one node. warm and kept are of the dedup'd ones; saved = what all of them
    take less than without Medes, less their share of base pages. Of kept, present is in the sandboxes themselves; of
    present, tick is what stayed as tick sets, touched what came back since. An older agent tells no means (None)."""

    function: str
    tenant: str = ""
    sandboxes: int = 0
    sandboxes_dedup: int = 0
    warm_bytes: int = 0
    kept_bytes: int = 0
    base_share_bytes: int = 0
    saved_bytes: int = 0
    present_bytes: int = 0
    tick_bytes: int = 0
    touched_bytes: int = 0
    mean_saved_bytes: int | None = None
    recent_saved_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """What the controller knows of a node."""

    endpoints: NodeEndpoints
    usage: NodeUsage = NodeUsage()
    alive: bool = False
    last_heartbeat_age_ms: int = 0
    functions: tuple[FunctionUsage, ...] = ()


@dataclass(frozen=True, slots=True)
class SandboxRecord:
    """One entry of the controller's sandbox directory."""

    sandbox_id: str
    node_id: str
    function: str
    domain: str = ""
    state: SandboxState = SandboxState.UNSPECIFIED
    warm_bytes: int = 0
    kept_bytes: int = 0
    is_base: bool = False


@dataclass(frozen=True, slots=True)
class Statistics:
    """Counters of the controller; lookup times are of the registry alone, over the recent calls."""

    bases: int = 0
    base_pages: int = 0
    registry_hashes: int = 0
    registry_bytes: int = 0
    lookups: int = 0
    lookup_pages: int = 0
    lookup_us_p50: float = 0.0
    lookup_us_p99: float = 0.0
    nodes_alive: int = 0


@dataclass(frozen=True, slots=True)
class LifecycleSettings:
    """Per-sandbox periods; zero means the agent's setting. `disabled`: never dedup or purge by timer."""

    idle_period_ms: int = 0
    keep_alive_period_ms: int = 0
    keep_dedup_period_ms: int = 0
    disabled: bool = False
    activity_lease_ms: int = 0


@dataclass(frozen=True, slots=True)
class DedupReport:
    """What one dedup op did. gross_saved = warm - patch - table - resident; saved = gross_saved - base_share, the
    sandbox's share of the base pages it uses as of the op's end. Negative: more memory is held than before. An older agent
    tells neither gross_saved nor base_share (None); its saved is the gross one."""

    warm_bytes: int = 0
    patch_bytes: int = 0
    table_bytes: int = 0
    resident_bytes: int = 0
    saved_bytes: int = 0
    base_bytes_added: int = 0
    pages_by_kind: tuple[int, ...] = ()
    stopped_us: int = 0
    total_us: int = 0
    stage_us: dict[str, int] = field(default_factory=dict)
    remote_pages_read: int = 0
    changed_pages: int = 0
    pages_by_transport: dict[str, int] = field(default_factory=dict)
    notes: tuple[Note, ...] = ()
    base_share_bytes: int | None = None
    gross_saved_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class ReclaimReport:
    """What one reclaim op did. changed_pages: written since they had come back, they stay; tick_pages stay, too: touched soon
    after they had been reclaimed before."""

    reclaimed_pages: int = 0
    changed_pages: int = 0
    tick_pages: int = 0
    stopped_us: int = 0
    total_us: int = 0
    notes: tuple[Note, ...] = ()

    @property
    def text(self) -> str:
        return (
            f"{self.reclaimed_pages} pages that had come back went again; {self.changed_pages} that were written and "
            f"{self.tick_pages} that it ticks with stay"
        )


@dataclass(frozen=True, slots=True)
class BaseShare:
    """A base that a sandbox uses, or made and nobody uses: of its bytes, an equal part for each of its users."""

    base_id: int
    node_id: str
    base_bytes: int = 0
    users: int = 0
    share_bytes: int = 0


@dataclass(frozen=True, slots=True)
class RestoreReport:
    """What one restore op did; complete_us is 0 while pages are still coming in.

    waited_us: from the call (or its turn in the lock) until the sandbox ran. ready_us, complete_us: from when pages began
    to move. stage_us, in order: queue (admission), peers (base pages readable), ready (working set in, threads let go),
    complete (last page), settle (journal, pins); fetch, apply and place are thread time of the page work within and may overlap.
    """

    pages_total: int = 0
    pages_prefetched: int = 0
    faults_demand: int = 0
    faults_zero: int = 0
    ready_us: int = 0
    complete_us: int = 0
    remote_bytes: int = 0
    pages_by_transport: dict[str, int] = field(default_factory=dict)
    was_dedup: bool = False
    demand_woken: bool = False
    queue_us: int = 0
    waited_us: int = 0
    pages_background: int = 0
    stage_us: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A sandbox as its agent reports it. Its share of base pages and what it saves are None where the agent does not tell:
    in events and in answers to begin and end, and an older agent's."""

    sandbox_id: str
    function: str = ""
    tenant: str = ""
    domain: str = ""
    state: SandboxState = SandboxState.UNSPECIFIED
    pids: tuple[int, ...] = ()
    subject: str = ""  # as registered, of drivers whose sandboxes are no processes
    driver: str = ""
    warm_bytes: int = 0
    kept_bytes: int = 0
    is_base: bool = False
    state_age_ms: int = 0
    dedup_count: int = 0
    restore_count: int = 0
    transport_by_peer: dict[str, str] = field(default_factory=dict)
    last_dedup: DedupReport | None = None
    last_restore: RestoreReport | None = None
    lost_reason: str = ""
    touched_bytes: int = 0
    waiting: str = ""  # why it is not taken back after a restart, though nothing is lost; "" when it is
    node_id: str = ""
    base_share_bytes: int | None = None
    saved_bytes: int | None = None
    present_bytes: int = 0
    tick_bytes: int = 0
    mean_saved_bytes: int | None = None
    recent_saved_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class DedupResult:
    """The answer to Dedup."""

    sandbox: Sandbox
    report: DedupReport = DedupReport()


@dataclass(frozen=True, slots=True)
class RestoreResult:
    """The answer to Restore."""

    sandbox: Sandbox
    report: RestoreReport = RestoreReport()


@dataclass(frozen=True, slots=True)
class OrphanFile:
    """A file of shm_dir that the agent does not know: left alone, removed by command only."""

    name: str  # relative to shm_dir
    bytes: int = 0  # of memory that it takes
    modified_unix_s: int = 0
    code: str = ""  # of the error that keeps it from being used; "" for one that was set aside
    reason: str = ""


@dataclass(frozen=True, slots=True)
class SandboxEvent:
    """One state change, from Watch. `previous` is the state before; `sequence` grows by one per event."""

    sandbox: Sandbox
    previous: SandboxState
    reason: str
    sequence: int
    purge_cause: PurgeCause = PurgeCause.UNSPECIFIED


@dataclass(frozen=True, slots=True)
class BaseStatus:
    """A base on this node, its memory and how many holders pin it. What follows `pins` only in answers to ListBases:
    who pins it, the dedup'd sandboxes here that use it, and for how long nobody has needed it (0: somebody may)."""

    base: BaseDescriptor
    bytes: int = 0
    pins: int = 0
    pins_by_node: dict[str, int] = field(default_factory=dict)
    sandboxes: int = 0
    made_by: str = ""
    maker_is_here: bool = False
    age_ms: int = 0
    retired: bool = False
    unneeded_ms: int = 0


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """An agent's own view of its node."""

    node_id: str
    warm_bytes: int = 0
    kept_bytes: int = 0
    base_bytes: int = 0
    memory_limit_bytes: int = 0
    pressure: str = ""
    bases: tuple[BaseStatus, ...] = ()
    pages_read_by_transport: dict[str, int] = field(default_factory=dict)
    controller_connected: bool = False
    live_driver: str = ""
    base_pages_read_remote: int = 0
    page_server_bytes: int = 0
    gross_saved_bytes: int = 0
    saved_bytes: int = 0
    functions: tuple[FunctionUsage, ...] = ()


@dataclass(frozen=True, slots=True)
class OpRecord:
    """One op of a sandbox's recent past. `outcome`: done, demand, or the code of the error that ended it."""

    kind: str
    age_ms: int = 0
    outcome: str = ""
    reason: str = ""
    message: str = ""
    hint: str = ""
    total_us: int = 0
    stage_us: dict[str, int] = field(default_factory=dict)
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a sandbox is in its state, what it holds, and what happens next.

    `next_action` is dedup, purge, idle (its lease on activity ends) or none; `next_reason` says why it is that.
    `lifecycle` has the periods in force. `ops` are its last ones, the newest first.
    """

    sandbox: Sandbox
    reason: str = ""
    patch_bytes: int = 0
    table_bytes: int = 0
    resident_bytes: int = 0
    previous_bytes: int = 0
    bases: tuple[BaseShare, ...] = ()
    next_action: str = "none"
    next_in_ms: int = 0
    next_reason: str = ""
    lifecycle: LifecycleSettings = LifecycleSettings()
    requests: int = 0
    idle_wakes: int = 0
    dedup_failures: int = 0
    ops: tuple[OpRecord, ...] = ()
