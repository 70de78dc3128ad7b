"""The contract of the extension. Every call marked (nogil) releases the GIL while it works.

Failures raise the exceptions of medes.errors. `bytes` arrays are packed little-endian.
"""

from collections.abc import Callable
from typing import Any

# --- common -----------------------------------------------------------------------------------------------
PAGE_BYTES: int
MAX_SAMPLES: int
DEFAULT_SAMPLES: int
MAX_LOCATIONS: int

def checksum64(data: bytes) -> int: ...
def set_store_key(folder: str, key: bytes) -> None:
    """Files of the folder are sealed with the key (32 bytes) when written, and checked when opened, from now on."""

def seal_existing(path: str) -> None:
    """Seals a file that has no seal yet, in a folder with a key. Raises not_found, corrupt, io."""

def keep_only(capabilities: list[int]) -> None:
    """Gives up every other capability, new privileges, core files and being traced by others than root, for good; for the
    calling thread and what it starts. Raises io."""

def error_codes() -> list[str]: ...
def error_passes(code: str) -> bool:
    """As `medes.errors.passes`, of the native core."""

# --- memory -----------------------------------------------------------------------------------------------
class MemoryImage:
    """See native/image/image.h. Owns its pages (`capture`, `from_buffer`; free them by dropping it) or leaves them in
    the processes (`attach`): a read then sees what is there now, zeros where a page has gone, and may raise
    process_gone."""

    @staticmethod
    def from_buffer(data: bytes, address: int = 0, value_only: bool = True) -> MemoryImage: ...
    @property
    def page_count(self) -> int: ...
    @property
    def pids(self) -> list[int]: ...
    @property
    def ranges(self) -> list[tuple[int, int]]: ...
    @property
    def value_only(self) -> bool: ...
    @property
    def fork_shared(self) -> dict[str, int]:
        """Pages shared copy-on-write, each counted once: `outside` and `kept` ones are not in the image, `copied` is
        what a restore will hold beyond what was held."""

    def page(self, index: int) -> bytes: ...
    def pages(self, first: int, count: int) -> bytes: ...
    def layout_bytes(self) -> bytes: ...

def process_tree(roots: list[int]) -> list[int]:
    """Roots and all their descendants, roots first. Raises process_gone."""

def living_processes() -> list[tuple[int, int, int, int]]:
    """(pid, parent, session, start time in clock ticks) of every process that we can see, in one look."""

def memory_room(pid: int, cgroup_root: str = "/sys/fs/cgroup", proc: str = "/proc") -> int | None:
    """Bytes that the process may still take before its memory cgroup, or one above it, kills: file cache, slab that can be
    reclaimed and what can be swapped out count as free. None without a limit, or where groups cannot be seen."""

def cgroup_pids(path: str) -> list[int]: ...
def private_bytes(pids: list[int]) -> int:
    """What the processes hold for themselves; anonymous pages shared since a fork count once, not once a process."""

def process_start_time(pid: int) -> int:
    """Field 22 of /proc/pid/stat, in clock ticks: tells a reused pid from the same process."""

def living_start_time(pid: int) -> int:
    """The same of a process that `is_alive`; 0 where none of that pid is."""

def is_alive(pid: int) -> bool:
    """Whether a thread of the process has not ended. The main thread may end long before others."""

def attach(pids: list[int], fork_sharers_max: int | None = None) -> MemoryImage:
    """(nogil) A live image of the private pages that can leave the processes, which keep running. Takes no memory of
    their size. With `fork_sharers_max`, pages stay that processes outside share too, or more than so many of `pids`."""

def capture(pids: list[int]) -> MemoryImage:
    """(nogil) A copy of it."""

# --- fingerprint ------------------------------------------------------------------------------------------
class Fingerprints:
    page_count: int
    samples_per_page: int
    @property
    def hashes(self) -> bytes: ...  # page_count * k u64, 0 = no sample
    @property
    def positions(self) -> bytes: ...  # page_count * k u8, units of 16 bytes

def simd_levels() -> list[str]:
    """Those this CPU runs, best last: "scalar", "avx2", "avx512"."""

def fingerprint(image: MemoryImage, samples_per_page: int = 8, simd: str = "best") -> Fingerprints:
    """(nogil)"""

def murmur3_x64_128(data: bytes, seed: int = 0) -> tuple[int, int]: ...

# --- registry ---------------------------------------------------------------------------------------------
class Locations:
    """Per hash up to two base locations; merges answers of several indexes."""

    @staticmethod
    def empty(page_count: int, samples_per_page: int) -> Locations: ...
    def merge(self, packed: bytes, base_ids: list[int], pages: bytes) -> None:
        """(nogil) Adds locations packed as in controller.proto, of which row i is of page pages[i] (packed u64);
        base_ids: slot → base id. What is there stays. Raises invalid_argument, limit_exceeded."""

    def pack(self) -> tuple[bytes, list[int]]: ...
    def remaining(self, hashes: bytes, samples_min: int = 2) -> tuple[bytes, bytes]:
        """(nogil) Of the image's hashes: the pages that want more locations, as packed u64, and their hashes row by row.
        Pages that have no samples want none."""

    @property
    def page_count(self) -> int: ...
    @property
    def samples_per_page(self) -> int: ...

class FingerprintIndex:
    """In-memory chunk hash → base page index. Thread-safe."""

    def insert(self, base_id: int, hashes: bytes, positions: bytes, samples_per_page: int) -> None: ...
    def retire(self, base_id: int) -> bool: ...
    def lookup(self, hashes: bytes, samples_per_page: int) -> Locations:
        """(nogil)"""

    def base_ids(self) -> list[int]: ...
    def stats(self) -> dict[str, int]: ...  # bases, base_pages, hashes, bytes

# --- patch ------------------------------------------------------------------------------------------------
class WindowPlan:
    """Which base windows each page may be encoded against."""

    @property
    def base_ids(self) -> list[int]: ...
    @property
    def page_count(self) -> int: ...
    @property
    def covered_pages(self) -> int: ...
    def uncovered_pages(self, samples_min: int = 4) -> list[int]:
        """Pages that no window explains well: what a new base should add."""

def plan_windows(image: MemoryImage, fingerprints: Fingerprints, locations: Locations) -> WindowPlan:
    """(nogil)"""

PAGE_KINDS: tuple[str, ...]  # docs/patch-format.md, native/codec/page_kinds.h

class EncodedImage:
    """The dedup'd form of an image, verified: every page was decoded and compared equal."""

    @staticmethod
    def from_bytes(blob: bytes, folder: str = "") -> EncodedImage:
        """Opens a blob made by to_bytes(). Raises corrupt."""

    @property
    def page_count(self) -> int: ...
    @property
    def group_pages(self) -> int: ...
    @property
    def slides(self) -> list[tuple[int, int]]:
        """Per base: how many 256 KiB granules have a learnt slide, and how many distinct slides there are."""

    def page_kinds(self) -> bytes:
        """One byte a page: its place in PAGE_KINDS."""
    @property
    def stats(self) -> dict[str, int]: ...
    # pages_KIND for each of PAGE_KINDS, patch_bytes, table_bytes, windows
    @property
    def base_ids(self) -> list[int]: ...
    @property
    def blob_bytes(self) -> int: ...
    def to_bytes(self) -> bytes: ...
    def decode(self, page: int, bases: BaseSet) -> bytes: ...
    def check(self, bases: BaseSet) -> None:
        """(nogil) Rebuilds every page and checks its tag or checksum. Raises corrupt."""

    def verify(self, image: MemoryImage, bases: BaseSet) -> None:
        """(nogil) Raises corrupt when any page differs."""

def encode(
    image: MemoryImage,
    plan: WindowPlan,
    bases: BaseSet,
    codec: str = "windowed",
    group_pages: int | None = None,
    cancel: CancelFlag | None = None,
    simd: str = "best",
    reuse: Reuse | None = None,
    wanted_first: bytes = b"",
    folder: str = "",
) -> EncodedImage:
    """(nogil) Fetches the windows' extents, encodes, decodes and compares every page (verify before evict).

    Bases of the plan that are not in `bases` are not used. group_pages: 1 to 64 pages are compressed together
    (default 16); 0 stores patches uncompressed. wanted_first: the working set, packed; its pages are stored so
    that each reads alone. folder: pages get tags made with the key of that store folder (set_store_key), where it has one;
    else checksums. Raises cancelled, the error of a failed fetch, corrupt.
    """

class Reuse:
    """Which pages of an image an earlier sandbox file of the same processes has, by address and tag."""

    @property
    def pages(self) -> int:
        """How many are taken over."""

    def plan(self, plan: WindowPlan) -> WindowPlan:
        """(nogil) The plan for encode(reuse=self): the earlier bases are among its base_ids. Raises limit_exceeded."""

def survey(
    image: MemoryImage,
    samples_per_page: int,
    index: FingerprintIndex,
    previous: SandboxFile | None = None,
    cancel: CancelFlag | None = None,
) -> tuple[Fingerprints, Locations, Reuse | None]:
    """(nogil) Reads every page once and, block by block on all cores: tells whether it is as in `previous`,
    fingerprints the others and looks them up. A Reuse comes where there was a `previous`; pages that it takes over
    have no samples. Raises cancelled, process_gone, permission_denied."""

class CancelFlag:
    def cancel(self) -> None: ...
    def abandon(self) -> None:
        """An eviction that does not end is to end at once (cancelled), with all left as by a killed agent."""
    @property
    def cancelled(self) -> bool: ...

# --- store ------------------------------------------------------------------------------------------------
class Slab:
    @staticmethod
    def create(
        path: str, base_id: int, image: MemoryImage, pages: list[int] | None = None, meta: bytes = b""
    ) -> Slab: ...
    @staticmethod
    def open(path: str, ours: bool = True) -> Slab: ...
    @property
    def base_id(self) -> int: ...
    @property
    def page_count(self) -> int: ...
    @property
    def ranges(self) -> list[tuple[int, int]]: ...
    @property
    def value_only(self) -> bool: ...
    @property
    def meta(self) -> bytes:
        """The agent's, empty in a slab of version 1."""

    @property
    def path(self) -> str: ...
    @property
    def file_bytes(self) -> int: ...
    def fingerprint(self, samples_per_page: int = 8) -> Fingerprints: ...
    def verify(self) -> bool: ...
    def unlink(self) -> None: ...

class SandboxFile:
    @staticmethod
    def create(path: str, meta: bytes, image: MemoryImage, encoded: EncodedImage) -> SandboxFile: ...
    @staticmethod
    def open(path: str, ours: bool = True) -> SandboxFile: ...
    @property
    def meta(self) -> bytes: ...
    @property
    def base_ids(self) -> list[int]: ...
    @property
    def page_count(self) -> int: ...
    @property
    def pids(self) -> list[int]: ...
    @property
    def start_times(self) -> list[int]:
        """Of the processes of `pids`, in clock ticks."""

    @property
    def stats(self) -> dict[str, int]: ...
    @property
    def page_state_counts(self) -> dict[str, int]: ...
    @property
    def may_be_stopped(self) -> bool:
        """Whether an agent's death in the middle of an eviction may have stopped processes of it."""

    def continue_stopped(self) -> None:
        """Continues processes that an agent's death in the middle of an eviction has stopped. Adoption does so too."""

    @property
    def child_paths(self) -> list[str]:
        """Files of children that were forked while pages were missing, and still miss some."""

    @property
    def path(self) -> str: ...
    @property
    def file_bytes(self) -> int: ...
    def verify(self, bases: BaseSet, image: MemoryImage | None = None) -> None:
        """(nogil) Rebuilds every page and checks it: against its tag or checksum, and against `image`. Raises corrupt, and
        permission_denied for tags whose key set_store_key was not given."""

    def write_pages(self, fd: int, bases: BaseSet) -> None:
        """(nogil) Rebuilds every page, checks it, and writes it into the file at its address: for drivers whose sandboxes'
        memory is a file. Raises corrupt, the error of a failed fetch, io, invalid_argument for pages of several processes."""

    def unlink(self) -> None: ...

# --- transport --------------------------------------------------------------------------------------------
class TlsIdentity:
    """What a node shows of itself at TLS handshakes: PEM texts. Thread-safe; raises invalid_argument."""

    def __init__(self, certificate: bytes, private_key: bytes, ca: bytes) -> None: ...
    def replace(self, certificate: bytes, private_key: bytes, ca: bytes) -> None:
        """From the next handshake on; connections that are open go on."""

class PageServer:
    """Serves slabs to peers over mutual TLS, or over plain TCP without an identity (own C++ threads). With one a
    token is taken only from the node it was granted to."""

    def __init__(
        self,
        host: str,
        port: int = 0,
        *,
        identity: TlsIdentity | None = None,
    ) -> None: ...
    @property
    def address(self) -> str: ...
    def add_slab(self, slab: Slab, domain: str) -> None: ...
    def remove_slab(self, base_id: int) -> None: ...
    def grant(self, token: bytes, domain: str, peer: str, valid_s: float | None = None) -> None:
        """None: until it is revoked. Later connections with the token are refused, those that are open end with the next
        pause between their requests."""

    def revoke(self, token: bytes) -> None: ...
    @property
    def grants(self) -> int:
        """Tokens that are known, ended ones included until they are forgotten."""

    def end_connections(self) -> None:
        """(nogil) Ends every connection behind the requests that have come; readers connect anew."""

    def stats(self) -> dict[str, int]: ...
    def close(self) -> None: ...

class PageReader:
    """Reads of one peer's base pages, whatever the transport. Thread-safe."""

    @property
    def transport(self) -> str:
        """What a batch submitted now would take."""

    def read(self, base_id: int, offset: int, length: int, timeout_s: float = 10.0) -> bytes:
        """(nogil) One read, for tests and tools: page bytes of ops never pass through Python."""

    def read_batch(
        self, reads: list[tuple[int, int, int]], timeout_s: float = 10.0
    ) -> list[tuple[str, bytes]]:
        """(nogil) One batch of (base_id, offset, length) → per read its code ("ok", …) and bytes (tests, tools)."""

    def readdress(self, address: str, token: bytes) -> None:
        """Where the peer is and what it granted; used from the next connection on, and at once by reads that wait because
        their token was refused."""

    def reconnect(self) -> bool:
        """(nogil) Makes the connections anew that there are, beside the reads under way. False when the peer did not take
        one of them; one that is not believed any more is then closed. Blocks for some seconds at most."""

    def stats(self) -> dict[str, int]: ...
    # batches, reads, bytes, failures, retries, reconnects, fallbacks, breaks, refused_tokens
    @property
    def bytes_by_transport(self) -> dict[str, int]:
        """stats()["bytes"] by what carried them; only those that carried any."""

    def close(self) -> None: ...

def tcp_reader(
    address: str,
    token: bytes,
    *,
    streams: int = 1,
    identity: TlsIdentity | None = None,
    server_name: str = "",
    connect_now: bool = True,
    check_digests: bool = True,
    attempts: int = 4,
    wake: int = -1,
) -> PageReader:
    """(nogil) A reader over TCP, or mutual TLS with an identity; then the server's certificate must be for server_name
    (empty: the address's host). With connect_now raises peer_unreachable or unauthenticated; without, the first read
    connects. Without check_digests damage on the way is only found when pages are rebuilt. Failed reads are tried
    `attempts` times. `wake`, an eventfd, is told when the peer refuses the token; reads then wait up to 2 s for
    readdress."""

def local_reader(slabs: list[Slab]) -> PageReader: ...
def fallback_reader(first: PageReader, second: PageReader) -> PageReader:
    """The first, then (counted in stats()["fallbacks"]) the second reader: for reads that the first ends with
    peer_unreachable, not_found or internal."""

def callback_reader(name: str, read: Callable[[int, int, int], bytes]) -> PageReader:
    """Calls `read(base_id, offset, length)` under the GIL, on whatever thread reads, for each read in turn: slow, for
    experiments and tests. It returns `length` bytes (others: corrupt) or raises an error of the catalogue (any other:
    internal). It must wait for nothing that may itself be waiting for a page. Let go of at close()."""

def retry_reader(reader: PageReader, attempts: int = 4) -> PageReader: ...
def failing_reader(
    reader: PageReader,
    *,
    seed: int = 1,
    drop: float = 0.0,
    fail: float = 0.0,
    corrupt: float = 0.0,
    corrupt_found: bool = False,
    delay_max_us: int = 0,
    reorder: bool = False,
    die_after_reads: int = 0,
) -> PageReader:
    """For tests: see native/transport/failing_reader.h."""

def time_reads(
    reader: PageReader, slab: Slab, offsets: list[int], length: int, rounds: int, depth: int = 1
) -> dict[str, Any]:
    """(nogil) For benchmarks, as the next three: latency_us (one a batch), wall_s, cpu_s (of the process), bytes.

    Verifies what it read.
    """

def time_memcpy(
    slab: Slab, offsets: list[int], length: int, rounds: int, depth: int = 1
) -> dict[str, Any]: ...
def time_socket(
    slab: Slab, offsets: list[int], length: int, rounds: int, depth: int = 1
) -> dict[str, Any]: ...
def time_verbs(
    slab: Slab, offsets: list[int], length: int, rounds: int, depth: int = 1
) -> dict[str, Any]: ...

# RDMA: raises unsupported where libibverbs or a device is missing.
def rdma_devices() -> list[dict[str, object]]:
    """(nogil) One entry a port: name, port, active, link_layer, gid_index, gid, max_rd_atomic, queue_pairs_max,
    memory_regions_max."""

class RdmaEndpoint:
    """Values of RdmaEndpoint of peer.proto; path_mtu in bytes."""

    def __init__(
        self,
        queue_pair_number: int,
        packet_sequence_number: int,
        gid: bytes,
        lid: int,
        path_mtu: int,
        max_rd_atomic: int,
        port: int,
    ) -> None: ...
    queue_pair_number: int
    packet_sequence_number: int
    @property
    def gid(self) -> bytes: ...
    lid: int
    path_mtu: int
    max_rd_atomic: int
    port: int

class RdmaRegion:
    def __init__(self, base_id: int, address: int, length: int, remote_key: int) -> None: ...
    base_id: int
    address: int
    length: int
    remote_key: int

class RdmaContext:
    """One device and port, serving and reading. The first active one unless named."""

    def __init__(
        self,
        device: str = "",
        port: int = 0,
        *,
        buffer_bytes: int = 33554432,
        client_connections_max: int = 256,
        server_connections_max: int = 1024,
    ) -> None: ...
    @property
    def device(self) -> str: ...
    @property
    def port(self) -> int: ...
    @property
    def gid(self) -> bytes: ...
    def add_slab(self, slab: Slab, domain: str) -> None:
        """(nogil) Registers the slab's pages for READs: locks them in memory."""

    def remove_slab(self, base_id: int) -> bool: ...
    def region(self, base_id: int, domain: str) -> RdmaRegion | None:
        """To be handed to authenticated peers of that domain only."""

    def accept(self, remote: RdmaEndpoint, domain: str, peer: str) -> tuple[int, RdmaEndpoint]:
        """(nogil) A queue pair that may read `domain`; its id is for disconnect(). Raises busy at the bound."""

    def disconnect(self, connection_id: int) -> bool: ...
    def disconnect_peer(self, peer: str) -> int: ...
    def reader(self) -> RdmaReader: ...
    def take_wanted(self, timeout_s: float) -> list[int]:
        """(nogil) Ids of readers that were used while they had no connection."""

    def evict_idle(self, idle_s: float) -> int: ...
    def stats(self) -> dict[str, int]: ...
    def close(self) -> None: ...

class RdmaReader(PageReader):
    @property
    def id(self) -> int: ...
    @property
    def connected(self) -> bool: ...
    def offer(self) -> RdmaEndpoint:
        """(nogil) A new queue pair, to be sent to the peer; connect() completes it."""

    def connect(self, remote: RdmaEndpoint) -> None: ...
    def add_region(self, region: RdmaRegion) -> None: ...
    def keep_regions(self, base_ids: list[int]) -> int:
        """Forgets the regions of all other bases; returns how many."""

class KeptPages:
    """Base pages of other nodes that a node keeps, by domain; thread-safe. The base not used for longest goes first."""

    def __init__(self, limit_bytes: int) -> None: ...
    @property
    def bytes(self) -> int: ...
    @property
    def base_ids(self) -> list[int]: ...
    @property
    def used_pages(self) -> int:
        """Pages of sandboxes that were made of what is kept."""

    def drop(self, base_id: int) -> None: ...
    def clear(self) -> None: ...

class BaseSet:
    def __init__(self) -> None: ...
    def add_local(self, slab: Slab) -> int: ...
    def add_remote(
        self,
        base_id: int,
        page_count: int,
        ranges: list[tuple[int, int]],
        value_only: bool,
        reader: PageReader,
    ) -> int: ...
    @property
    def base_ids(self) -> list[int]: ...
    @property
    def remote_pages_read(self) -> int: ...
    @property
    def remote_read_bytes(self) -> int: ...
    @property
    def remote_pages_by_transport(self) -> dict[str, int]:
        """remote_pages_read by what carried them; only those that carried any."""

    def drop_remote(self) -> None: ...
    def keep_in(self, pages: KeptPages, domain: str) -> None:
        """Before any use: what working sets are made of is looked for there."""

    def keep_wanted(self) -> None:
        """(nogil) Keeps what restores have read for working sets and single touches since the last time."""

# --- live -------------------------------------------------------------------------------------------------
def probe_live() -> dict[str, str]:
    """Empty when the live driver can run here; else what is missing → how to get it."""

def frozen_cgroup(pid: int) -> str:
    """The frozen cgroup (v1 freezer or v2) that holds the process; empty when none does, or it cannot be told."""

def missing_seccomp_right() -> tuple[str, str]:
    """Why sandboxes with a seccomp filter (as containers have) cannot be dedup'd from here, and what to do about it;
    empty when they can."""

class LiveSandbox:
    @property
    def state(self) -> str: ...  # "dormant", "restoring", "complete", "lost"
    @property
    def evict_result(self) -> dict[str, int]: ...
    # evicted_pages, resident_pages, changed_pages, stopped_us, evict_us, threads, processes
    @property
    def notes(self) -> list[str]:
        """What had to stay resident, and why."""

    @property
    def lost_reason(self) -> str: ...
    @property
    def lost_code(self) -> str:
        """The cause as a catalogue code, "ok" unless lost."""

    @property
    def needed(self) -> bool:
        """Whether a process that lives, forked ones included, has pages out that come from here alone."""

    def restore(
        self,
        lazy: bool = True,
        working_set: bytes = b"",
        background_bytes_per_s: int = 0,
    ) -> None:
        """Returns at once; the fault server's threads do the work. On a sandbox that already restores
        (its own fault woke it) the working set comes on top."""

    def wait_ready(self, timeout_s: float) -> bool: ...  # (nogil) raises lost, process_gone
    def wait_complete(self, timeout_s: float) -> bool: ...  # (nogil) raises lost, process_gone
    def stats(self) -> dict[str, int]: ...  # RestoreStats
    def working_set(self) -> bytes:
        """Faults of this restore in order, packed {u64 region_key, u64 page_offset}."""

    @property
    def placed_pages(self) -> int:
        """Pages that came back since the eviction, by touches or by a restore."""

    def touched(self) -> bytes:
        """Pages touched while dormant in order, packed like working_set(); without those that made it wake."""

    def reclaim(
        self, pages_min: int = 1, pages_max: int = 0, cancel: CancelFlag | None = None
    ) -> tuple[dict[str, int], list[str]]:
        """(nogil) Takes pages of a dormant sandbox that came back and are as they were away again; nothing with fewer than
        `pages_min`, at most `pages_max` (0: all). Returns (reclaimed_pages, changed_pages, tick_pages, stopped_us; what stayed, and why)."""

    @property
    def reclaimable_pages(self) -> int:
        """Of a dormant sandbox: back by touches, not known to have been written, and no tick."""

    def reclaimed(self) -> bytes:
        """What the last reclaim took and was not touched since, packed like working_set()."""

    def detach(self) -> None:
        """Stops serving without touching the sandbox (agent shutdown): it waits until adopted again."""

class FaultServer:
    """Node-wide: owns the threads that serve faults, prefetch and background restore."""

    def __init__(self, threads: int = 2) -> None: ...
    @property
    def event_fd(self) -> int:
        """Readable when take_events() has something."""

    def take_events(self) -> list[tuple[str, str]]:
        """(sandbox file path, event): "demand_woken", "ready", "complete", "lost", "process_gone",
        "short_of_memory" (the restore waits for room in a memory cgroup)."""

    def evict(
        self,
        image: MemoryImage,
        file: SandboxFile,
        bases: BaseSet,
        hold_frozen: bool = False,
        cancel: CancelFlag | None = None,
        working_set: bytes = b"",
        tick_set: bytes = b"",
        touches_per_s_max: int = 0,
    ) -> LiveSandbox:
        """(nogil) Stops the sandbox, leaves out what changed since the capture and the tick set, registers, evicts, lets it go.
        More than
        `touches_per_s_max` touches within a second restore it, with `working_set` prefetched."""

    def adopt(
        self, file: SandboxFile, bases: BaseSet, working_set: bytes = b"", touches_per_s_max: int = 0
    ) -> LiveSandbox:
        """(nogil) Takes the sandbox's userfaultfds back (pidfd_getfd) after an agent restart."""

    def release_gone(self) -> None:
        """(nogil) Lets go of what is still held of processes that ended after their sandbox was detached."""

    def stats(self) -> dict[str, int]: ...
    def close(self) -> None: ...
