"""Which pages a function touches first after a restore, merged over restores, in order, kept in state_dir.

An entry is (region key, page offset), packed as two little-endian u64, an identity that survives ASLR. A restore
records the pages that faulted; pages that were prefetched cannot fault, so each restore leaves a slice of the set
out, another one each time: a page of the slice that does not fault has lost its reason and decays, one that faults
is confirmed. A slice is at most a sixteenth of the set and about HOLDOUT_PAGES_CALM, since each costs its fault; about
HOLDOUT_PAGES when less than half were confirmed or the function touched much that is new, until they are.

File: `<state_dir>/working-sets/<hex>.ws`, name = checksum of function and domain;
"MWS1" | u32 restores | u64 checksum64 of the rest | entries of {u64 key, u64 offset, f32 score, f32 rank}.
"""

from __future__ import annotations

import logging
import struct
from dataclasses import dataclass
from pathlib import Path

from medes import native
from medes.errors import MedesError, NotFoundError
from medes.folders import make_private_folder, read_private, write_private
from medes.limits import WORKING_SET_PAGES_MAX

log = logging.getLogger(__name__)

_HEADER = struct.Struct("<4sIQ")
_ENTRY = struct.Struct("<QQff")
_PAIR = struct.Struct("<QQ")
_MAGIC = b"MWS1"
_FILE_BYTES_MAX = _HEADER.size + WORKING_SET_PAGES_MAX * _ENTRY.size

HOLDOUT_SLICES_MIN = 16
HOLDOUT_PAGES, HOLDOUT_PAGES_CALM = 48, 4  # some 40 us a fault, which the request waits for
CALM_AFTER_PAGES = 120  # held out
UNEASY_AFTER_PAGES = 20  # held out
CONFIRMED_MIN = 0.5  # of the pages held out lately; no function touches every page each time
HOLDOUT_MEMORY = 0.9  # what a restore leaves of the weight of earlier holdouts
DRIFT_PAGES = 32  # new ones in a restore, or a sixteenth of the set: it is not calm
TICK_SET_SLICES = (
    8  # nobody waits for what is touched asleep, and a page that stays for nothing costs its memory
)
DECAY = 0.5
SCORE_MIN = 0.2  # an entry goes after three holdouts without a fault
RANK_WEIGHT = 0.3  # of the newest restore in an entry's average position

Page = tuple[int, int]


@dataclass(slots=True)
class _Entry:
    score: float
    rank: float


def unpack_pages(packed: bytes) -> list[Page]:
    """(region key, page offset) pairs; a torn tail is left out."""
    usable = len(packed) - len(packed) % _PAIR.size
    return list(_PAIR.iter_unpack(packed[:usable]))  # type: ignore[arg-type]


def pack_pages(pages: list[Page]) -> bytes:
    return b"".join(_PAIR.pack(*page) for page in pages)


class WorkingSet:
    """The working set of one function."""

    def __init__(self, slices: int = 0) -> None:
        """`slices`: one of so many is held out each time; 0: as many as its size and its calm say."""
        self._slices = slices
        self._entries: dict[Page, _Entry] = {}
        self._next: tuple[bytes, frozenset[Page]] | None = None
        self.restores = 0
        # Not kept over a restart of the agent.
        self._calm = True
        self._held_out = self._confirmed = 0.0  # pages, lately

    def __len__(self) -> int:
        return len(self._entries)

    def prefetch(self) -> tuple[bytes, frozenset[Page]]:
        """What the next restore shall prefetch, packed in order, and the pages left out as its holdout.

        Worked out once a merge (`prepare`), since a restore waits for it: a function touches thousands of pages.
        """
        if self._next is None:
            self._next = self._plan()
        return self._next

    def exact(self) -> bytes:
        """All of the set, packed, the next holdout too."""
        packed, holdout = self.prefetch()
        return packed + pack_pages(sorted(holdout))

    def prepare(self) -> None:
        """Works out what the next prefetch() returns; for after a merge, off the path of a restore."""
        self._next = self._plan()

    def _plan(self) -> tuple[bytes, frozenset[Page]]:
        ordered = sorted(self._entries, key=lambda page: self._entries[page].rank)
        pages = HOLDOUT_PAGES_CALM if self._calm else HOLDOUT_PAGES
        slices = self._slices or max(HOLDOUT_SLICES_MIN, len(ordered) // pages)
        turn = self.restores % slices
        holdout = frozenset(page for page in ordered if hash(page) % slices == turn)
        return pack_pages([page for page in ordered if page not in holdout]), holdout

    def merge(self, faulted: list[Page], holdout: frozenset[Page] = frozenset()) -> None:
        """Takes in one restore: the pages that faulted, in order, and those that its prefetch left out."""
        self.restores += 1
        self._next = None
        self._weigh(faulted, holdout)
        seen: set[Page] = set()
        for rank, page in enumerate(faulted[:WORKING_SET_PAGES_MAX]):
            if page in seen:
                continue
            seen.add(page)
            entry = self._entries.get(page)
            if entry is None:
                self._entries[page] = _Entry(1.0, float(rank))
            else:
                entry.score = 1.0
                if page not in holdout:  # among the few faults of a prefetched restore its place says nothing
                    entry.rank += RANK_WEIGHT * (rank - entry.rank)
        for page in holdout - seen:
            if (entry := self._entries.get(page)) is not None:
                entry.score *= DECAY
                if entry.score < SCORE_MIN:
                    del self._entries[page]
        self._bound()

    def forget(self, pages: frozenset[Page]) -> None:
        """They are known to have no place in the set."""
        for page in pages:
            self._entries.pop(page, None)
        self._next = None

    def _weigh(self, faulted: list[Page], holdout: frozenset[Page]) -> None:
        """Whether the set still is what the function touches, by this restore."""
        touched = set(faulted)
        self._held_out = HOLDOUT_MEMORY * self._held_out + len(holdout)
        self._confirmed = HOLDOUT_MEMORY * self._confirmed + len(holdout & touched)
        drift = sum(page not in self._entries for page in touched)
        drifts = bool(self._entries) and drift > max(DRIFT_PAGES, len(self._entries) // 16)
        stale = self._held_out >= UNEASY_AFTER_PAGES and self._confirmed < CONFIRMED_MIN * self._held_out
        if drifts or (self._calm and stale):
            self._calm, self._held_out, self._confirmed = False, 0.0, 0.0
        elif self._held_out >= CALM_AFTER_PAGES:
            self._calm |= self._confirmed >= CONFIRMED_MIN * self._held_out

    def _bound(self) -> None:
        excess = len(self._entries) - WORKING_SET_PAGES_MAX
        if excess > 0:
            worst = sorted(self._entries, key=lambda p: (self._entries[p].score, -self._entries[p].rank))
            for page in worst[:excess]:
                del self._entries[page]

    def to_bytes(self) -> bytes:
        body = b"".join(_ENTRY.pack(*page, e.score, e.rank) for page, e in self._entries.items())
        return _HEADER.pack(_MAGIC, self.restores & 0xFFFFFFFF, native.checksum64(body)) + body

    @classmethod
    def from_bytes(cls, data: bytes, slices: int = 0) -> WorkingSet:
        """Raises ValueError for a damaged file."""
        if len(data) < _HEADER.size:
            raise ValueError("truncated")
        magic, restores, checksum = _HEADER.unpack_from(data)
        body = data[_HEADER.size :]
        if magic != _MAGIC or len(body) % _ENTRY.size or len(body) // _ENTRY.size > WORKING_SET_PAGES_MAX:
            raise ValueError("not a working set")
        if native.checksum64(body) != checksum:
            raise ValueError("checksum mismatch")
        found = cls(slices)
        found.restores = restores
        for key, offset, score, rank in _ENTRY.iter_unpack(body):
            found._entries[(key, offset)] = _Entry(score, rank)
        return found


class WorkingSetStore:
    """All functions' working sets, loaded on first use, saved after each merge. Calls touch small files: not for
    the event loop's thread when the disk is slow. Losing a file costs one slower restore."""

    def __init__(self, folder: Path, slices: int = 0) -> None:
        self._folder = folder
        self._slices = slices
        self._sets: dict[tuple[str, str], WorkingSet] = {}

    def _path(self, domain: str, function: str) -> Path:
        name = native.checksum64(b"\0".join((domain.encode(), function.encode())))
        return self._folder / f"{name:016x}.ws"

    def get(self, domain: str, function: str) -> WorkingSet:
        key = (domain, function)
        if key not in self._sets:
            path = self._path(domain, function)
            try:
                self._sets[key] = WorkingSet.from_bytes(read_private(path, _FILE_BYTES_MAX), self._slices)
            except NotFoundError:
                self._sets[key] = WorkingSet(self._slices)
            except (MedesError, ValueError) as error:
                log.warning("working set of %s: %s: starting a new one", function, error)
                self._sets[key] = WorkingSet(self._slices)
        return self._sets[key]

    def save(self, domain: str, function: str) -> None:
        """Writes the set under a temporary name, then renames it. Failures are logged: it is only a hint."""
        path = self._path(domain, function)
        self.get(domain, function).prepare()
        try:
            make_private_folder(self._folder)
            write_private(path, self.get(domain, function).to_bytes(), sync=False)
        except MedesError as error:
            log.warning("working set of %s: %s", function, error)
