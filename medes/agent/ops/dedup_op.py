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
import json
import logging
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from medes import native
from medes.agent import accounting, hooks, journal_state, page_sources
from medes.agent.base_op import BEING_MADE, free_base, publish_base, wants_base
from medes.agent.candidates import Candidates
from medes.agent.core import Agent, endpoints_to_json
from medes.agent.drivers import LiveHandle
from medes.agent.fault_points import point
from medes.agent.memory_headroom import headroom_bytes
from medes.agent.op_cancel import OpCancel
from medes.agent.orphans import set_aside
from medes.agent.processes import is_ending, namespace
from medes.agent.sandbox import Evicted, SandboxEntry, SandboxSpec
from medes.errors import (
    BusyError,
    CancelledError,
    CorruptError,
    InternalError,
    MedesError,
    NotFoundError,
    ProcessGoneError,
    StoreFullError,
)
from medes.types import BaseDescriptor, DedupReport, NodeEndpoints, Note, NoteCode
from medes.types import SandboxState as S
from medes.units import bytes_text

log = logging.getLogger(__name__)

META_VERSION = 1
# How long to wait for another sandbox that makes the function's first base.
BASE_WAIT_S = 10.0
BASE_POLL_S = 0.1
KINDS = ("zero", "identical", "patch", "compressed", "raw")


@dataclass(slots=True)
class Planned:
    """A plan whose bases are pinned and readable."""

    plan: native.WindowPlan
    bases: native.BaseSet
    descriptors: dict[int, BaseDescriptor] = field(default_factory=dict)  # remote ones
    endpoints: dict[str, NodeEndpoints] = field(default_factory=dict)
    transport_by_peer: dict[str, str] = field(default_factory=dict)


class DedupOp:
    """One run over one sandbox, whose lock the caller holds and whose state is DEDUPING."""

    def __init__(self, agent: Agent, entry: SandboxEntry, *, make_base: bool, hold_frozen: bool) -> None:
        self.agent = agent
        self.entry = entry
        self.make_base = make_base
        self.hold_frozen = hold_frozen
        self.holder = f"{entry.id}.{secrets.token_hex(4)}"
        self.pins: dict[str, list[int]] = {}  # node → base ids asked for
        self.stage_us: dict[str, int] = {}
        self.notes: list[Note] = []
        self.base_bytes_added = 0
        self.remote_pages: dict[str, int] = {}  # read of peers while encoding, by transport
        self.file: native.SandboxFile | None = None
        # A base must be made of all pages, so nothing is taken over then.
        self.previous = None if make_base else entry.previous
        self.reuse: native.Reuse | None = None
        self.cancel = OpCancel(entry.id)
        entry.cancel = self.cancel

    async def run(self) -> DedupReport:
        """Ends with the sandbox in DEDUP, or raises and leaves it WARM (LOST only if pages had gone)."""
        try:
            return await self._run()
        except ProcessGoneError as error:
            # Who was killed counts as running for some instants yet.
            if await self.agent.in_ops(_ends, self.entry.spec):
                raise
            raise BusyError(
                f"a process of it ended during the op: {error.message}",
                object=self.entry.id,
                hint="try again when the sandbox is idle",
            ) from error
        finally:
            self.agent.pins_of_ops.pop(self.holder, None)

    async def _run(self) -> DedupReport:
        start_s = time.perf_counter()
        entry = self.entry
        try:
            if entry.spec.hook_address:
                await self._run_hook()
            pids = await self.agent.in_ops(entry.spec.processes)
            warm_bytes = await self.agent.in_ops(native.private_bytes, pids)
            entry.warm_bytes = warm_bytes
            with self._stage("capture"):
                image = await self.agent.in_ops(self._capture, pids)
            point("dedup.captured")
            candidates = await self._survey(image)
            if self.reuse is not None:
                self._note(NoteCode.TAKEN_OVER, f"{self.reuse.pages} pages as at the last dedup")
            candidates = await self._with_base(image, candidates)
            planned, encoded = await self._plan_and_encode(image, candidates)
            point("dedup.encoded")
            self._check()
            self.file = await self._write_file(image, encoded, planned)
            point("dedup.written")
            await self._commit()
            point("dedup.committed")
            # Before the eviction: from then on the sandbox may wake at any instant and read these pages itself.
            self.remote_pages = planned.bases.remote_pages_by_transport
            planned.bases.drop_remote()
            self._check()
        except BaseException:
            self._roll_back("warm again")
            raise
        evicted = await self._evict(image, planned)
        pinned = [d for i, d in evicted.descriptors.items() if i in self._pinned_ids()]
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

    def _capture(self, pids: list[int]) -> native.MemoryImage:
        """(blocks) Pages that the processes share since a fork go only where the copies that a restore makes of them
        fit, as the kernel would kill for them."""
        driver = self.agent.driver_of(self.entry)
        sharers_max = self.agent.settings.for_function(self.entry.spec.function).fork_sharers_max
        image = driver.capture(pids, sharers_max)
        copied_bytes = image.fork_shared["copied"] * native.PAGE_BYTES
        room = headroom_bytes(pids[0]) if copied_bytes else None
        if room is not None and copied_bytes > room:
            image = driver.capture(pids, 1)
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
        start_s = time.perf_counter()
        yield
        self.stage_us[name] = self.stage_us.get(name, 0) + int((time.perf_counter() - start_s) * 1e6)

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

    def _pinned_ids(self) -> set[int]:
        return {i for ids in self.pins.values() for i in ids}

    def _unpin_all(self) -> None:
        """A plan came to nothing at a holder of its bases."""
        self.agent.remote_index.forget(self._pinned_ids())
        unpin(self.agent, self.holder, self.pins)
        self.pins = {}

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

    async def _advice(self, candidates: Candidates) -> tuple[bool, str]:
        """Whether to become a base. While another sandbox is becoming the function's first one, waits for it: patches
        against no base at all would be many times larger."""
        with self._stage("advice"):
            advised, reason = await self.cancel.unless_cancelled(wants_base(self.agent, self.entry))
            deadline_s = time.monotonic() + BASE_WAIT_S
            waited = False
            while reason == BEING_MADE and not advised and time.monotonic() < deadline_s:
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
        planned = Planned(plan, native.BaseSet())
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
                node_id = descriptor.node_id
            by_node.setdefault(node_id, []).append(base_id)
        with self._stage("pin"):
            await self._pin(by_node, planned, candidates.endpoints)
        point("dedup.pinned")
        return planned

    async def _pin(
        self, by_node: dict[str, list[int]], planned: Planned, endpoints: dict[str, NodeEndpoints]
    ) -> None:
        agent, spec = self.agent, self.entry.spec
        self.pins = by_node
        agent.pins_of_ops[self.holder] = (spec.domain, by_node)
        await agent.journal.write(self._record(journal_state.DEDUPING, {}))
        point("dedup.pins_asked")
        local = agent.bases.grantable(spec.domain, by_node.get(agent.node_id, []), set())
        agent.pins.pin(agent.node_id, self.holder, spec.domain, [b.base_id for b in local])
        for base in local:
            planned.bases.add_local(base.slab)
        remote = {node: ids for node, ids in by_node.items() if node != agent.node_id}
        for node_id in remote:
            if node_id in endpoints:
                agent.peers.learn(endpoints[node_id])
            if node_id in agent.peers.endpoints:
                planned.endpoints[node_id] = agent.peers.endpoints[node_id]
        granted = await self._pin_at(remote)
        for node_id, descriptors in zip(remote, granted, strict=True):
            if isinstance(descriptors, BaseException):
                raise descriptors
            first = remote[node_id][0]
            reader = await self.cancel.unless_cancelled(agent.peers.live_reader(node_id, spec.domain, first))
            planned.transport_by_peer[node_id] = reader.transport
            for descriptor in descriptors:
                # The holder's word on its own base counts, not the registry's.
                planned.descriptors[descriptor.base_id] = descriptor
                add_remote(planned.bases, descriptor, reader)

    async def _pin_at(self, remote: dict[str, list[int]]) -> list[list[BaseDescriptor] | BaseException]:
        """What each node answers. Every call has ended before anything is taken back: an unpin must not overtake its pin.
        Of an op that is to end that is done behind it."""
        peers, domain = self.agent.peers, self.entry.spec.domain

        async def ask() -> list[list[BaseDescriptor] | BaseException]:
            calls = (peers.pin(node, self.holder, domain, ids) for node, ids in remote.items())
            return await asyncio.gather(*calls, return_exceptions=True)

        asked = self.agent.spawn(ask(), f"pins {self.holder}")

        async def answers() -> list[list[BaseDescriptor] | BaseException]:
            return await asyncio.shield(asked)

        try:
            return await self.cancel.unless_cancelled(answers())
        except CancelledError:
            self.pins = {node: ids for node, ids in self.pins.items() if node not in remote}
            self.agent.spawn(self._unpin_when_answered(asked, remote), f"unpin {self.holder}")
            raise

    async def _unpin_when_answered(self, asked: asyncio.Task[Any], remote: dict[str, list[int]]) -> None:
        await asyncio.wait({asked})
        unpin(self.agent, self.holder, remote)

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

    async def _write_file(
        self, image: native.MemoryImage, encoded: native.EncodedImage, planned: Planned
    ) -> native.SandboxFile:
        agent = self.agent
        limit = agent.settings.patch_store_limit_bytes
        used = agent.patch_store_bytes
        if used + encoded.blob_bytes > limit and agent.previous_bytes:
            agent.drop_previous()
            used = agent.patch_store_bytes
        if used + encoded.blob_bytes > limit:
            raise StoreFullError(
                f"{bytes_text(encoded.blob_bytes)} of patches do not fit: {bytes_text(used)} of {bytes_text(limit)} are used",
                object=str(agent.settings.shm_path),
                hint="raise patch_store_limit_bytes, or purge sandboxes",
            )
        used_ids = set(encoded.base_ids)
        unused = {n: [b for b in ids if b not in used_ids] for n, ids in self.pins.items()}
        self.pins = {n: kept for n, ids in self.pins.items() if (kept := [b for b in ids if b in used_ids])}
        agent.pins_of_ops[self.holder] = (self.entry.spec.domain, self.pins)
        meta = {
            "version": META_VERSION,
            "readable_from": 1,
            "namespace": namespace(),
            "spec": self.entry.spec.to_json(),
            "holder": self.holder,
            "pins": self.pins,
            "descriptors": [asdict(d) for i, d in planned.descriptors.items() if i in used_ids],
            "endpoints": [endpoints_to_json(e) for e in planned.endpoints.values()],
            "figures": self._figures(),
        }
        path = agent.sandbox_path(self.entry.id)
        with self._stage("write"):
            await agent.in_ops(set_aside, path)  # not ours, or the books would know it
            file = await agent.in_ops(
                native.SandboxFile.create, str(path), json.dumps(meta).encode(), image, encoded
            )
        unpin(agent, self.holder, unused)
        return file

    async def _commit(self) -> None:
        await self.agent.journal.write(self._record(journal_state.DEDUP, {}), sync=True)

    def _record(self, kind: str, figures: dict[str, object]) -> dict[str, object]:
        return {
            "t": kind,
            "id": self.entry.id,
            "path": str(self.agent.sandbox_path(self.entry.id)),
            "holder": self.holder,
            "pins": self.pins,
            "figures": figures,
        }

    def _figures(self) -> dict[str, object]:
        """What is known of the sandbox before its pages go."""
        return {"warm_bytes": self.entry.warm_bytes, "is_base": self.entry.is_base}

    # --- eviction ------------------------------------------------------------------------------------------
    async def _evict(self, image: native.MemoryImage, planned: Planned) -> Evicted:
        agent, entry, file = self.agent, self.entry, self.file
        assert file is not None
        driver = agent.driver_of(entry)
        start_s = time.perf_counter()
        packed, probe = agent.working_sets.get(entry.spec.domain, entry.spec.function).prefetch()
        try:
            live = await agent.in_ops(
                driver.evict, image, file, planned.bases, self.hold_frozen, self.cancel.flag, packed
            )
        except BaseException as error:
            if _pages_gone(file) and isinstance(error, MedesError):
                await self._take_back(planned, error)
            else:
                self._roll_back("warm again")
            raise
        point("dedup.evicted")
        self.stage_us["evict"] = int((time.perf_counter() - start_s) * 1e6)
        evicted = self._evicted(planned, live)
        evicted.probe = probe
        evicted.remote_pages_before = self.remote_pages
        entry.evicted = evicted
        entry.previous = None
        entry.cancel = None
        return evicted

    def _evicted(self, planned: Planned, live: LiveHandle) -> Evicted:
        assert self.file is not None
        return Evicted(
            file=self.file,
            bases=planned.bases,
            live=live,
            holder=self.holder,
            pins=self.pins,
            descriptors=planned.descriptors,
            endpoints=planned.endpoints,
            transport_by_peer=planned.transport_by_peer,
            since_s=self.agent.clock.now_s(),
        )

    async def _take_back(self, planned: Planned, error: MedesError) -> None:
        """The eviction failed half-way: what has gone must come back from the sandbox file, or is lost."""
        agent, entry, file = self.agent, self.entry, self.file
        assert file is not None
        entry.cancel = entry.previous = None
        try:
            live = await agent.in_ops(agent.driver_of(entry).adopt, file, planned.bases)
        except MedesError as second:
            agent.lose(entry, f"eviction failed ({error}), and so did taking the pages back ({second})")
            return
        entry.evicted = self._evicted(planned, live)
        agent.move(entry, S.DEDUP, f"eviction failed half-way: {error}; its pages are to come back")

    def _roll_back(self, reason: str) -> None:
        """Back to warm: no page has gone. Undoes what the op left in memory, journal and at peers."""
        agent, entry = self.agent, self.entry
        entry.cancel = None
        if self.file is not None:
            self.file.unlink()
        agent.journal.post({"t": journal_state.WARM, "id": entry.id})
        if entry.state is S.DEDUPING:
            agent.move(entry, S.WARM, reason)
        unpin(agent, self.holder, self.pins)

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
        resident = await agent.in_ops(resident_bytes, agent, entry, result)
        patch_bytes = stats["patch_bytes"]
        table_bytes = max(0, evicted.file.file_bytes - patch_bytes)
        page_sources.count(agent, self.remote_pages)
        gross = warm_bytes - patch_bytes - table_bytes - resident
        share = sum(s.share_bytes for s in accounting.base_shares(agent, entry))
        report = DedupReport(
            warm_bytes=warm_bytes,
            patch_bytes=patch_bytes,
            table_bytes=table_bytes,
            resident_bytes=resident,
            gross_saved_bytes=gross,
            base_share_bytes=share,
            saved_bytes=gross - share,
            base_bytes_added=self.base_bytes_added,
            pages_by_kind=tuple(stats[f"pages_{kind}"] for kind in KINDS),
            stopped_us=result.get("stopped_us", 0),
            total_us=int((time.perf_counter() - start_s) * 1e6),
            stage_us=self.stage_us,
            remote_pages_read=sum(self.remote_pages.values()),
            changed_pages=result.get("changed_pages", 0),
            pages_by_transport=self.remote_pages,
            notes=tuple(self.notes),
        )
        entry.kept_bytes = patch_bytes + table_bytes + resident
        entry.last_dedup = report
        entry.dedup_count += 1
        entry.dedup_failures = 0
        figures = {**self._figures(), "kept_bytes": entry.kept_bytes, "dedup_count": entry.dedup_count}
        agent.journal.post(self._record(journal_state.DEDUP, figures))
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


def _ends(spec: SandboxSpec) -> bool:
    """(blocks) Whether all its processes have exited, or have been killed and are about to."""
    try:
        return all(is_ending(p) for p in spec.living())
    except MedesError:
        return False


def _pages_gone(file: native.SandboxFile) -> bool:
    counts = file.page_state_counts
    return counts.get("evicted", 0) + counts.get("evicting", 0) > 0


def add_remote(bases: native.BaseSet, descriptor: BaseDescriptor, reader: native.PageReader) -> None:
    """Adds a peer's base to a set."""
    ranges = [(r.begin, r.end) for r in descriptor.ranges]
    bases.add_remote(descriptor.base_id, descriptor.page_count, ranges, descriptor.value_only, reader)


def resident_bytes(agent: Agent, entry: SandboxEntry, result: dict[str, int]) -> int:
    """Private bytes the sandbox still has, which are all of them where the driver frees nothing."""
    if not agent.driver_of(entry).frees:
        return entry.warm_bytes
    if "resident_bytes" in result:
        return result["resident_bytes"]
    try:
        return native.private_bytes(entry.spec.processes())
    except MedesError:
        return result.get("resident_pages", 0) * native.PAGE_BYTES


def unpin(agent: Agent, holder: str, pins: dict[str, list[int]]) -> None:
    """Gives pins back: here at once (bases that were only kept for them go), at peers in the background."""
    for base_id in agent.pins.unpin(agent.node_id, holder, pins.get(agent.node_id, [])):
        free_base(agent, base_id)
    for node_id, ids in pins.items():
        if node_id != agent.node_id and ids:
            agent.spawn(agent.peers.unpin(node_id, holder, ids), f"unpin {holder} at {node_id}")
