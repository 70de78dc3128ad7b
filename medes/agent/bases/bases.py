"""The base store of a node: slabs in shared memory, their fingerprints, and when one may be freed.

A base is created whole and never changed. It leaves in two steps: *retired* (found by no lookup, takes no new pins),
then *freed* (slab unlinked) as soon as no pin is left; see medes.agent.bases.pins.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from medes import native
from medes.agent.bases.pins import PinTable
from medes.chance import Chance
from medes.errors import CorruptError, MedesError, NotFoundError, StoreFullError, UnsupportedError
from medes.limits import BASES_PER_NODE_MAX
from medes.types import AddressRange, BaseDescriptor
from medes.units import bytes_text

log = logging.getLogger(__name__)

META_VERSION = 1
# Header page, meta and 8 bytes of checksum a page, rounded up: what a slab takes beyond its pages, for the accounting
# before it exists.
_SLAB_OVERHEAD_BYTES = 4 * native.PAGE_BYTES


@dataclass(slots=True)
class LocalBase:
    """A base of this node. `announced`: the controller (of this incarnation) has its fingerprints."""

    descriptor: BaseDescriptor
    slab: native.Slab
    sandbox_id: str = ""
    retired: bool = False
    announced: bool = False
    unneeded_s: float | None = (
        None  # since when (the agent's clock) nobody pins it and no sandbox of its function is here
    )

    @property
    def base_id(self) -> int:
        return self.descriptor.base_id


@dataclass(frozen=True, slots=True)
class BaseMeta:
    """Whose pages a slab holds, as its meta section says: enough to use it without a journal."""

    domain: str
    function: str
    sandbox_id: str

    def encode(self) -> bytes:
        return json.dumps({"version": META_VERSION, "readable_from": 1, **asdict(self)}).encode()

    @classmethod
    def of(cls, slab: native.Slab) -> BaseMeta | None:
        """None: a slab from before there was meta. Raises corrupt, unsupported (meta of a newer version)."""
        if not slab.meta:
            return None
        try:
            found = json.loads(slab.meta)
            if found["readable_from"] > META_VERSION:
                raise UnsupportedError(f"slab meta of version {found['version']}", object=slab.path)
            return cls(str(found["domain"]), str(found["function"]), str(found["sandbox_id"]))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise CorruptError(f"slab meta: {error}", object=slab.path) from error


def new_base_id(chance: Chance) -> int:
    """Cluster-wide unique without asking anybody: 63 random bits, never 0."""
    return chance.bits(63) | 1 << 62


class BaseStore:
    """Bookkeeping is the event loop's; methods marked (blocks) are for an executor thread."""

    def __init__(
        self, node_id: str, shm_path: Path, limit_bytes: int, samples_per_page: int, pins: PinTable
    ) -> None:
        self.node_id = node_id
        self.shm_path = shm_path
        self.limit_bytes = limit_bytes
        self.samples_per_page = samples_per_page
        self.pins = pins
        self.bases: dict[int, LocalBase] = {}
        # All that lie here are in `bases`: before that nobody can be told that this node does not have one.
        self.complete = False
        # Those whose slabs are there and could not be opened: nobody is told that they are gone.
        self.waiting: set[int] = set()
        self._indexes: dict[str, native.FingerprintIndex] = {}
        self._reserved_bytes = 0
        # Told when a slab joins or leaves: the page servers.
        self.on_added: Callable[[LocalBase], None] = lambda base: None
        self.on_removed: Callable[[LocalBase], None] = lambda base: None

    @property
    def used_bytes(self) -> int:
        return sum(b.slab.file_bytes for b in list(self.bases.values()))

    @property
    def index_bytes(self) -> int:
        """Memory of the fingerprints."""
        return sum(index.stats()["bytes"] for index in list(self._indexes.values()))

    def index(self, domain: str) -> native.FingerprintIndex:
        """The fingerprints of this node's bases of a domain."""
        if domain not in self._indexes:
            self._indexes[domain] = native.FingerprintIndex()
        return self._indexes[domain]

    def has_base_for(self, domain: str, function: str) -> bool:
        return any(
            b.descriptor.domain == domain and b.descriptor.function == function and not b.retired
            for b in self.bases.values()
        )

    def path_of(self, base_id: int) -> Path:
        return self.shm_path / f"base-{base_id:016x}.slab"

    def reserve(self, page_count: int) -> int:
        """Room for a base that is about to be made; returns bytes to give to `unreserve`. Raises store_full."""
        size = page_count * (native.PAGE_BYTES + 8) + _SLAB_OVERHEAD_BYTES
        if len(self.bases) >= BASES_PER_NODE_MAX:
            raise StoreFullError(f"{BASES_PER_NODE_MAX} bases", object=str(self.shm_path))
        if self.used_bytes + self._reserved_bytes + size > self.limit_bytes:
            raise StoreFullError(
                f"a base of {bytes_text(size)} does not fit: {bytes_text(self.used_bytes)} of {bytes_text(self.limit_bytes)} are used",
                object=str(self.shm_path),
                hint="raise base_store_limit_bytes, or purge sandboxes so that bases can go",
            )
        self._reserved_bytes += size
        return size

    def unreserve(self, size: int) -> None:
        self._reserved_bytes -= size

    def build(
        self,
        base_id: int,
        image: native.MemoryImage,
        pages: list[int],
        domain: str,
        function: str,
        sandbox_id: str,
    ) -> tuple[LocalBase, native.Fingerprints]:
        """(blocks) Writes the slab and fingerprints it. The caller has reserved room. Raises store_full, io."""
        meta = BaseMeta(domain, function, sandbox_id)
        slab = native.Slab.create(str(self.path_of(base_id)), base_id, image, pages, meta.encode())
        base = LocalBase(self._describe(slab, domain, function), slab, sandbox_id)
        return base, slab.fingerprint(self.samples_per_page)

    def _describe(self, slab: native.Slab, domain: str, function: str) -> BaseDescriptor:
        return BaseDescriptor(
            base_id=slab.base_id,
            holders=(self.node_id,),
            domain=domain,
            function=function,
            page_count=slab.page_count,
            ranges=tuple(AddressRange(begin, end) for begin, end in slab.ranges),
            value_only=slab.value_only,
        )

    def reopen(
        self, path: str, known: BaseMeta | None, *, fingerprints: bool
    ) -> tuple[LocalBase, native.Fingerprints | None]:
        """(blocks) Opens and verifies an existing slab. `known`: what the journal says of it, for one without meta. Raises
        not_found, corrupt, unsupported (made by a newer version), and what keeps it from being opened now."""
        slab = native.Slab.open(path)
        if not slab.verify():
            raise CorruptError("pages fail their checksums", object=path)
        meta = BaseMeta.of(slab) or known
        if meta is None:
            raise CorruptError("nothing says whose pages these are", object=path)
        found = slab.fingerprint(self.samples_per_page) if fingerprints else None
        base = LocalBase(self._describe(slab, meta.domain, meta.function), slab, meta.sandbox_id)
        return base, found

    def add(self, base: LocalBase, fingerprints: native.Fingerprints | None) -> None:
        """Makes a base findable (by its fingerprints) and readable by peers."""
        self.bases[base.base_id] = base
        if fingerprints is not None and not base.retired:
            self.index(base.descriptor.domain).insert(
                base.base_id, fingerprints.hashes, fingerprints.positions, fingerprints.samples_per_page
            )
        self.on_added(base)

    def rebuild(self, found: list[tuple[BaseDescriptor, native.Fingerprints]]) -> None:
        """Replaces every index (the number of samples a page has changed)."""
        self._indexes = {}
        for descriptor, prints in found:
            self.index(descriptor.domain).insert(
                descriptor.base_id, prints.hashes, prints.positions, prints.samples_per_page
            )

    def get(self, base_id: int) -> LocalBase:
        """Raises not_found."""
        base = self.bases.get(base_id)
        if base is None:
            raise NotFoundError("this node has no such base", object=f"base {base_id:016x}")
        return base

    def retire(self, base_id: int) -> LocalBase:
        """No lookup finds the base any more and nobody new may pin it. Raises not_found."""
        base = self.get(base_id)
        base.retired = True
        self.index(base.descriptor.domain).retire(base_id)
        return base

    def free_if_unpinned(self, base_id: int) -> bool:
        """Frees a retired base that nobody pins; True when it went."""
        base = self.bases.get(base_id)
        if base is None or not base.retired or self.pins.is_pinned(base_id):
            return False
        del self.bases[base_id]
        self.on_removed(base)
        try:
            base.slab.unlink()
        except MedesError as error:
            log.warning("base %016x: %s", base_id, error)
        return True

    def grantable(self, domain: str, base_ids: list[int], already: set[int]) -> list[LocalBase]:
        """The bases, if all may be pinned by somebody of this domain. Raises not_found otherwise."""
        found = []
        for base_id in base_ids:
            base = self.get(base_id)
            if base.descriptor.domain != domain:
                # The same words as for an unknown base: other domains' bases are nobody's business.
                raise NotFoundError("this node has no such base", object=f"base {base_id:016x}")
            if base.retired and base_id not in already:
                raise NotFoundError("the base is retired", object=f"base {base_id:016x}")
            found.append(base)
        return found
