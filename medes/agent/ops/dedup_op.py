"""The dedup op: warm → dedup. Every step up to the eviction can be undone and leaves the sandbox as it was.

    capture → survey (read, fingerprint, look up) → (publish a base) → plan → pin → encode + verify → sandbox file
            → commit → evict

Survey and encoding each read the sandbox's memory in small blocks while it runs on: an op needs no copy of it.

Order matters twice. Pins are asked for under a journalled holder id, so that a restarted agent knows what to give
back. The commit is journalled before the eviction, so that whatever instant the agent is killed at, the journal
and the page states in the sandbox file together tell whether pages are gone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from medes import native
from medes.agent.agent import Agent
from medes.agent.journal import records
from medes.agent.node.fault_points import point
from medes.agent.ops import hooks, page_sources
from medes.agent.ops.base_op import BEING_MADE, publish_base, wants_base
from medes.agent.ops.candidates import Candidates
from medes.agent.ops.dedup_file import figures, write_file
from medes.agent.ops.eviction import Eviction
from medes.agent.ops.op_pins import OpPins, Planned
from medes.agent.sandboxes.op_cancel import OpCancel
from medes.agent.sandboxes.sandbox import Evicted, SandboxEntry
from medes.errors import (
    BusyError,
    CancelledError,
    CorruptError,
    InternalError,
    MedesError,
    NotFoundError,
    ProcessGoneError,
)
from medes.types import DedupReport, Note, NoteCode
from medes.types import SandboxState as S
from medes.units import bytes_text

log = logging.getLogger(__name__)

# How long to wait for another sandbox that makes the function's first base.
BASE_WAIT_S = 10.0
BASE_POLL_S = 0.1


class DedupOp:
    """One run over one sandbox, whose lock the caller holds and whose state is DEDUPING."""

    def __init__(self, agent: Agent, entry: SandboxEntry, *, make_base: bool, hold_frozen: bool) -> None:
        self.agent = agent
        self.entry = entry
        self.make_base = make_base
        self.hold_frozen = hold_frozen
        self.stage_us: dict[str, int] = {}
        self.notes: list[Note] = []
        self.base_bytes_added = 0
        self.remote_pages: dict[str, int] = {}  # read of peers while encoding, by transport
        self.file: native.SandboxFile | None = None
        # A base must be made of all pages, so nothing is taken over then.
        self.previous = None if make_base else entry.previous
        self.reuse: native.Reuse | None = None
        self.cancel = OpCancel(entry.id)
        entry.begin_dedup_op(self.cancel)
        self.pins = OpPins(agent, entry, self.cancel)

    async def run(self) -> DedupReport:
        """Ends with the sandbox in DEDUP, or raises and leaves it WARM (LOST only if pages had gone)."""
        try:
            return await self._run()
        except ProcessGoneError as error:
            # Who was killed counts as running for some instants yet.
            if await self.agent.in_ops(self.entry.subject.ending):
                raise
            raise BusyError(
                f"a process of it ended during the op: {error.message}",
                object=self.entry.id,
                hint="try again when the sandbox is idle",
            ) from error
        finally:
            self.pins.end()

    async def _run(self) -> DedupReport:
        start_s = self.agent.clock.now_s()
        entry = self.entry
        try:
            if entry.spec.hook_address:
                await self._run_hook()
            warm_bytes = await self.agent.in_ops(entry.subject.private_bytes)
            entry.weigh(warm_bytes, self.agent.clock.now_s())
            with self._stage("capture"):
                image = await self.agent.in_ops(self._capture)
            point("dedup.captured")
            candidates = await self._survey(image)
            if self.reuse is not None:
                self._note(NoteCode.TAKEN_OVER, f"{self.reuse.pages} pages as at the last dedup")
            candidates = await self._with_base(image, candidates)
            planned, encoded = await self._plan_and_encode(image, candidates)
            point("dedup.encoded")
            self._check()
            with self._stage("write"):
                self.file = await write_file(self.agent, entry, image, encoded, planned, self.pins)
            point("dedup.written")
            await self.agent.journal.write(self.pins.committed({}), sync=True)
            point("dedup.committed")
            # Before the eviction: from then on the sandbox may wake at any instant and read these pages itself.
            self.remote_pages = planned.bases.remote_pages_by_transport
            planned.bases.drop_remote()
            self._check()
        except BaseException:
            self._roll_back("warm again")
            raise
        evicted = await self._evict(image, planned)
        pinned = [d for i, d in evicted.descriptors.items() if i in self.pins.ids()]
        self.agent.remote_index.used(entry.spec.domain, pinned)
        del image
        try:
            return await self._report(evicted, encoded, warm_bytes, start_s)
        except BaseException:
            if entry.state is S.DEDUPING:  # whatever went wrong in counting, the pages are out
                self.agent.move(entry, S.DEDUP, "evicted, not measured")
            raise

    async def _run_hook(self) -> None:
        body = {"sandbox_id": self.entry.id, "function": self.entry.spec.function}
        problem = await self.cancel.unless_cancelled(hooks.try_call(self.entry, "before-dedup", body))
        if problem:
            self._note(NoteCode.HOOK_FAILED, problem)

    def _capture(self) -> native.MemoryImage:
        """(blocks) Pages that the processes share since a fork go only where the copies that a restore makes of them
        fit, as the kernel would kill for them."""
        driver, subject = self.agent.driver_of(self.entry), self.entry.subject
        fork_sharers_max = self.agent.settings.for_function(self.entry.spec.function).fork_sharers_max
        image = driver.capture(subject, fork_sharers_max)
        copied_bytes = image.fork_shared["copied"] * native.PAGE_BYTES
        room = subject.memory_room() if copied_bytes else None
        if room is not None and copied_bytes > room:
            image = driver.capture(subject, 1)
            self._note(
                NoteCode.NO_ROOM_FOR_COPIES,
                f"copies of shared pages ({bytes_text(copied_bytes)}) would not fit its memory limit ({bytes_text(room)} left)",
            )
        shared = image.fork_shared
        if shared["outside"]:
            self._note(
                NoteCode.SHARED_OUTSIDE,
                f"{shared['outside']} pages stay: processes outside the sandbox share them",
            )
        if shared["kept"]:
            self._note(
                NoteCode.SHARED_BY_FORK, f"{shared['kept']} pages stay: its processes share them since a fork"
            )
        return image

    def _note(self, code: NoteCode, text: str) -> None:
        self.notes.append(Note(code, text))

    # --- steps ---------------------------------------------------------------------------------------------
    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        self._check()
        start_s = self.agent.clock.now_s()
        yield
        self.stage_us[name] = self.stage_us.get(name, 0) + int((self.agent.clock.now_s() - start_s) * 1e6)

    def _check(self) -> None:
        if self.entry.requests:
            self.cancel.cancel()
        self.cancel.check()

    async def _survey(self, image: native.MemoryImage) -> Candidates:
        """Where base pages may lie for the pages that are not taken over from the last dedup."""
        bases = self.agent.bases
        index = bases.index(self.entry.spec.domain)
        previous = self.previous.file if self.previous is not None else None
        with self._stage("survey"):
            prints, locations, self.reuse = await self.agent.in_ops(
                native.survey, image, bases.samples_per_page, index, previous, self.cancel.flag
            )
        candidates = Candidates(self.agent, self.entry.spec.domain, prints, locations)
        with self._stage("lookup"):
            await self.cancel.unless_cancelled(candidates.gather())
        return candidates

    async def _afresh(self, image: native.MemoryImage) -> Candidates:
        """Candidates for all pages, none of which is taken over any more."""
        self.previous = None
        return await self._survey(image)

    async def _with_base(self, image: native.MemoryImage, candidates: Candidates) -> Candidates:
        """The candidates after this sandbox has become a base itself, if it should."""
        if self.make_base:
            await self._make_base(image, candidates, "asked for")
        else:
            advised, reason = await self._advice(candidates)
            if advised:
                if self.reuse is not None:
                    candidates = await self._afresh(image)
                await self._make_base(image, candidates, reason)
        if candidates.note:
            self._note(NoteCode.OWN_BASES_ONLY, candidates.note)
        return candidates

    async def _advice(self, candidates: Candidates) -> tuple[bool, str]:
        """Whether to become a base. While another sandbox is becoming the function's first one, waits for it: patches
        against no base at all would be many times larger."""
        with self._stage("advice"):
            advised, reason = await self.cancel.unless_cancelled(wants_base(self.agent, self.entry))
            deadline_s = self.agent.clock.now_s() + BASE_WAIT_S
            waited = False
            while reason == BEING_MADE and not advised and self.agent.clock.now_s() < deadline_s:
                await asyncio.sleep(BASE_POLL_S)
                self._check()
                waited = True
                advised, reason = await self.cancel.unless_cancelled(wants_base(self.agent, self.entry))
            if waited:
                await self.cancel.unless_cancelled(candidates.gather_again())
        return advised, reason

    async def _make_base(self, image: native.MemoryImage, candidates: Candidates, reason: str) -> None:
        with self._stage("base"):
            # Or a base that is gone would seem to have these pages.
            await self.cancel.unless_cancelled(candidates.ask_anew())
            locations = await candidates.locations(remote=True)
            plan = await self.agent.in_ops(native.plan_windows, image, candidates.prints, locations)
            pages = await self.agent.in_ops(plan.uncovered_pages)
            if not pages:
                self._note(NoteCode.NO_BASE_NEEDED, "no base made: existing bases cover every page")
                return
            base = await publish_base(self.agent, self.entry, image, pages)
            self.base_bytes_added = base.slab.file_bytes
            log.info("%s: base %016x of %d pages (%s)", self.entry.id, base.base_id, len(pages), reason)

    async def _plan_and_encode(
        self, image: native.MemoryImage, candidates: Candidates
    ) -> tuple[Planned, native.EncodedImage]:
        """With every base that can be had; with this node's own when a holder of others fails on the way."""
        if self.reuse is not None:
            try:
                return await self._attempt(image, candidates, remote=True)
            except CancelledError:
                raise
            except MedesError as error:
                if not _others_fault(error) and not isinstance(error, InternalError):
                    raise
                # A base of the last dedup is gone, for one: nothing pinned it while the sandbox was warm.
                self._note(NoteCode.NOTHING_TAKEN_OVER, f"nothing taken over from the last dedup: {error}")
                self._unpin_all()
                candidates = await self._afresh(image)
        try:
            return await self._remote_attempt(image, candidates)
        except CancelledError:
            raise
        except MedesError as error:
            if not _others_fault(error):
                raise
            self._note(NoteCode.REMOTE_BASES_UNUSED, f"remote bases not used: {error}")
            self._unpin_all()
            return await self._attempt(image, candidates, remote=False)

    async def _remote_attempt(
        self, image: native.MemoryImage, candidates: Candidates
    ) -> tuple[Planned, native.EncodedImage]:
        """Once more with the controller's answer when what this node had kept of other nodes' bases was old."""
        try:
            return await self._attempt(image, candidates, remote=True)
        except NotFoundError as error:
            if not candidates.kept:
                raise
            self._note(NoteCode.BASE_GONE, f"a base known here is gone: {error}")
            self._unpin_all()
            await self.cancel.unless_cancelled(candidates.ask_anew())
            return await self._attempt(image, candidates, remote=True)

    def _unpin_all(self) -> None:
        """A plan came to nothing at a holder of its bases."""
        self.agent.refused(self.pins.ids())
        self.pins.give_back()

    async def _attempt(
        self,
        image: native.MemoryImage,
        candidates: Candidates,
        *,
        remote: bool,
    ) -> tuple[Planned, native.EncodedImage]:
        planned = await self._pinned_plan(image, candidates, remote=remote)
        spec = self.entry.spec
        wanted_first = self.agent.working_sets.get(spec.domain, spec.function).exact()
        with self._stage("encode"):
            return planned, await self.agent.in_ops(self._encode, image, planned, wanted_first)

    async def _pinned_plan(
        self,
        image: native.MemoryImage,
        candidates: Candidates,
        *,
        remote: bool,
    ) -> Planned:
        with self._stage("plan"):
            locations = await candidates.locations(remote=remote)
            plan = await self.agent.in_ops(native.plan_windows, image, candidates.prints, locations)
            if self.reuse is not None:
                plan = await self.agent.in_ops(self.reuse.plan, plan)
        planned = Planned(plan, self.agent.kept_pages.base_set(self.entry.spec.domain))
        by_node: dict[str, list[int]] = {}
        for base_id in plan.base_ids:
            node_id = self.agent.node_id
            if base_id not in self.agent.bases.bases:
                descriptor = candidates.descriptors.get(base_id)
                if descriptor is None and self.previous is not None:
                    descriptor = self.previous.descriptors.get(base_id)
                if descriptor is None:
                    raise NotFoundError("its holder is not known", object=f"base {base_id:016x}")
                planned.descriptors[base_id] = descriptor
                node_id = descriptor.nearest(node_id)
            by_node.setdefault(node_id, []).append(base_id)
        with self._stage("pin"):
            await self.pins.pin(by_node, planned, candidates.endpoints)
        point("dedup.pinned")
        return planned

    def _encode(
        self, image: native.MemoryImage, planned: Planned, wanted_first: bytes
    ) -> native.EncodedImage:
        return native.encode(
            image,
            planned.plan,
            planned.bases,
            cancel=self.cancel.flag,
            reuse=self.reuse,
            wanted_first=wanted_first,
            folder=str(self.agent.settings.shm_path),
        )

    # --- eviction ------------------------------------------------------------------------------------------
    async def _evict(self, image: native.MemoryImage, planned: Planned) -> Evicted:
        assert self.file is not None
        start_s = self.agent.clock.now_s()
        eviction = Eviction(self.agent, self.entry, self.cancel, self.pins, self.file)
        try:
            evicted = await eviction.run(image, planned, self.hold_frozen)
        except BaseException:
            if eviction.undone:
                self._roll_back("warm again")
            raise
        self.stage_us["evict"] = int((self.agent.clock.now_s() - start_s) * 1e6)
        evicted.remote_pages_before = self.remote_pages
        return evicted

    def _roll_back(self, reason: str) -> None:
        """Back to warm: no page has gone. Undoes what the op left in memory, journal and at peers."""
        agent, entry = self.agent, self.entry
        entry.end_dedup_op()
        if self.file is not None:
            self.file.unlink()
        agent.journal.post(records.warm(entry.id))
        if entry.state is S.DEDUPING:
            agent.move(entry, S.WARM, reason)
        self.pins.give_back()

    async def _report(
        self,
        evicted: Evicted,
        encoded: native.EncodedImage,
        warm_bytes: int,
        start_s: float,
    ) -> DedupReport:
        agent, entry = self.agent, self.entry
        result, stats = evicted.handle.evict_result, encoded.stats
        self.notes += [Note(NoteCode.PAGES_STAY, text) for text in evicted.handle.notes]
        touched_bytes = (
            evicted.touched_bytes
        )  # before measuring: what is touched meanwhile counts rather twice than never
        resident = await agent.in_ops(resident_bytes, agent, entry, result)
        patch_bytes = stats["patch_bytes"]
        table_bytes = max(0, evicted.file.file_bytes - patch_bytes)
        ticks = result.get("tick_pages", 0)
        if ticks:
            self._note(NoteCode.TICK_SET, f"{ticks} pages stay: it touches them while nobody uses it")
        page_sources.count(agent, self.remote_pages)
        gross = warm_bytes - patch_bytes - table_bytes - resident
        share = agent.accounting.share_bytes(entry)
        report = DedupReport(
            warm_bytes=warm_bytes,
            patch_bytes=patch_bytes,
            table_bytes=table_bytes,
            resident_bytes=resident,
            gross_saved_bytes=gross,
            base_share_bytes=share,
            saved_bytes=gross - share,
            base_bytes_added=self.base_bytes_added,
            pages_by_kind=tuple(stats[f"pages_{kind}"] for kind in native.PAGE_KINDS),
            stopped_us=result.get("stopped_us", 0),
            total_us=int((self.agent.clock.now_s() - start_s) * 1e6),
            stage_us=self.stage_us,
            remote_pages_read=sum(self.remote_pages.values()),
            changed_pages=result.get("changed_pages", 0),
            pages_by_transport=self.remote_pages,
            notes=tuple(self.notes),
        )
        kept_bytes, tick_bytes = (
            patch_bytes + table_bytes + resident - touched_bytes,
            ticks * native.PAGE_BYTES,
        )
        entry.dedup_measured(report, kept_bytes, tick_bytes)
        known = {
            **figures(entry),
            "kept_bytes": kept_bytes,
            "tick_bytes": tick_bytes,
            "dedup_count": entry.dedup_count,
        }
        agent.journal.post(self.pins.committed(known))
        agent.move(
            entry,
            S.DEDUP,
            f"saved {bytes_text(report.saved_bytes)} of {bytes_text(warm_bytes)}; {bytes_text(gross)} before its share of "
            "base pages",
        )
        return report


def _others_fault(error: MedesError) -> bool:
    """Whether a holder of base pages may be behind it: it passes, or the base is gone or damaged. The op still has the
    node's own bases."""
    return error.transient or isinstance(error, NotFoundError | CorruptError)


def resident_bytes(agent: Agent, entry: SandboxEntry, result: dict[str, int]) -> int:
    """Private bytes the sandbox still has, which are all of them where the driver frees nothing."""
    if not agent.driver_of(entry).frees:
        return entry.warm_bytes
    if "resident_bytes" in result:
        return result["resident_bytes"]
    try:
        return entry.subject.private_bytes()
    except MedesError:
        return result.get("resident_pages", 0) * native.PAGE_BYTES
