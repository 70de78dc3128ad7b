"""What a node has more than it would have without Medes, and whose that is.

    sandbox   saved = warm - kept of a dedup'd one, less its share of base pages; what is kept of a warm one is negative
    node      saved = the same of all its sandboxes, less all base pages it holds (not the shares), those it keeps of other nodes, and its indexes

A base's bytes are split evenly over those that pin it, sandboxes of other nodes included: these carry their part of it
there, as the holder tells. A base that nobody pins is its maker's. So the sums over all sandboxes of a cluster add up to
the sum over its nodes, but for bases without users or maker, indexes, and what changed since the holders told.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping

from medes.agent.bases.bases import BaseStore, LocalBase
from medes.agent.bases.kept_pages import KeptPages
from medes.agent.bases.remote_index import RemoteIndex
from medes.agent.node.time_mean import TimeMean
from medes.agent.sandboxes.sandbox import HELD, SAVED_WINDOW_S, SandboxEntry
from medes.clock import Clock
from medes.limits import FUNCTION_ROWS_MAX
from medes.native import PAGE_BYTES
from medes.types import BaseShare, FunctionUsage, NodeUsage
from medes.types import SandboxState as S

OTHERS = "(others)"  # no name of a function or tenant
_SUMMED = [field.name for field in dataclasses.fields(FunctionUsage)][2:]  # all but function and tenant
Made = Mapping[str, list[LocalBase]]  # sandbox id → the bases it made that nobody pins


class Accounting:
    """Reads what the agent holds; of its own are only means over time. All of it may be called from any thread but what looks."""

    def __init__(
        self,
        entries: Mapping[str, SandboxEntry],
        bases: BaseStore,
        remote_index: RemoteIndex,
        kept_pages: KeptPages,
        base_uses: Mapping[tuple[str, int], tuple[int, int]],
        memory_bytes: int,
        clock: Clock,
    ) -> None:
        """`base_uses`: (node, base id) → bytes and users of a peer's base, as its holder told. `memory_bytes`: what the
        node may use."""
        self._entries = entries
        self._bases = bases
        self._remote_index = remote_index
        self._kept_pages = kept_pages
        self._base_uses = base_uses
        self._memory_bytes = memory_bytes
        self._clock = clock
        self._saved = TimeMean(clock.now_s(), SAVED_WINDOW_S)

    # --- sums ----------------------------------------------------------------------------------------------
    @property
    def patch_store_bytes(self) -> int:
        """Of all sandbox files."""
        evicted = [e.evicted for e in list(self._entries.values())]
        return sum(e.file.file_bytes for e in evicted if e is not None) + self.previous_bytes

    @property
    def previous_bytes(self) -> int:
        """Kept of warm sandboxes to make their next dedup op cheaper."""
        held = [e.previous for e in list(self._entries.values())]
        return sum(previous.file.file_bytes for previous in held if previous is not None)

    @property
    def index_bytes(self) -> int:
        """Fingerprints, of this node's bases and of other nodes'."""
        return self._bases.index_bytes + self._remote_index.used_bytes

    @property
    def common_bytes(self) -> int:
        """What the node holds for all of its sandboxes: base pages, its own and those kept of other nodes, and indexes."""
        return self._bases.used_bytes + self._kept_pages.used_bytes + self.index_bytes

    def used_bytes(self) -> int:
        """Memory of sandboxes and stores, the sum that memory_limit_bytes bounds."""
        sandboxes = 0
        for entry in list(self._entries.values()):
            state, previous = entry.state, entry.previous
            if state is S.DEDUP:
                sandboxes += entry.kept_bytes
            elif state in HELD:
                sandboxes += entry.warm_bytes
            if previous is not None:
                sandboxes += previous.file.file_bytes
        return (
            sandboxes + self._bases.used_bytes + self._remote_index.used_bytes + self._kept_pages.used_bytes
        )

    def usage(self) -> NodeUsage:
        """The node's sums."""
        warm_bytes = kept_bytes = dedupd_bytes = freed_bytes = present_bytes = tick_bytes = touched_bytes = 0
        states = []
        for entry in list(self._entries.values()):
            state = entry.state
            states.append(state)
            held = entry.held()
            freed_bytes += held.freed_bytes
            if state is S.DEDUP:
                dedupd_bytes += entry.warm_bytes
                kept_bytes += held.kept_bytes
                present_bytes += held.present_bytes
                tick_bytes += entry.tick_at_op_bytes
                touched_bytes += held.touched_bytes
            elif state in HELD:
                warm_bytes += entry.warm_bytes
        base_bytes, now_s = self._bases.used_bytes, self._clock.now_s()
        return NodeUsage(
            memory_bytes=self._memory_bytes,
            warm_bytes=warm_bytes,
            kept_bytes=kept_bytes,
            base_bytes=base_bytes,
            sandboxes_running=states.count(S.RUNNING),
            sandboxes_warm=states.count(S.WARM),
            sandboxes_dedup=states.count(S.DEDUP),
            gross_saved_bytes=dedupd_bytes - kept_bytes,
            saved_bytes=freed_bytes - self.common_bytes,
            present_bytes=present_bytes,
            tick_bytes=tick_bytes,
            touched_bytes=touched_bytes,
            mean_saved_bytes=round(self._saved.mean(now_s)),
            recent_saved_bytes=round(self._saved.recent(now_s)),
        )

    # --- over time -----------------------------------------------------------------------------------------
    def look(self) -> None:
        """What the node and each sandbox save now, for their means."""
        now_s, made = self._clock.now_s(), self.unpinned_by_maker()
        freed_bytes = 0
        for entry in self._entries.values():
            freed = entry.freed_bytes
            freed_bytes += freed
            entry.saved.tell(now_s, freed - self.share_bytes(entry, made))
        self._saved.tell(now_s, freed_bytes - self.common_bytes)

    def look_at(self, entry: SandboxEntry) -> None:
        """The same of a sandbox that is in another state than before."""
        entry.saved.tell(self._clock.now_s(), entry.freed_bytes - self.share_bytes(entry))

    # --- shares --------------------------------------------------------------------------------------------
    def unpinned_by_maker(self) -> Made:
        """Sandbox id → the bases it made that nobody pins. Whoever asks for the shares of many passes it on as `made`."""
        found: dict[str, list[LocalBase]] = defaultdict(list)
        for base in list(self._bases.bases.values()):
            if base.sandbox_id and not self._bases.pins.users(base.base_id):
                found[base.sandbox_id].append(base)
        return found

    def base_shares(self, entry: SandboxEntry, made: Made | None = None) -> list[BaseShare]:
        """The bases whose memory a sandbox answers for."""
        made = self.unpinned_by_maker() if made is None else made
        shares = [
            BaseShare(b.base_id, self._bases.node_id, b.slab.file_bytes, 0, b.slab.file_bytes)
            for b in made.get(entry.id, ())
        ]
        pins = entry.pins()
        if pins is not None:
            for node_id, base_ids in list(pins[1].items()):
                shares += [self._share(entry, node_id, base_id) for base_id in base_ids]
        return shares

    def share_bytes(self, entry: SandboxEntry, made: Made | None = None) -> int:
        """The sum of a sandbox's shares."""
        return sum(share.share_bytes for share in self.base_shares(entry, made))

    def _share(self, entry: SandboxEntry, node_id: str, base_id: int) -> BaseShare:
        if node_id == self._bases.node_id:
            base = self._bases.bases.get(base_id)
            size, users = (base.slab.file_bytes, self._bases.pins.users(base_id)) if base else (0, 0)
        else:
            evicted = entry.evicted
            descriptor = evicted.descriptors.get(base_id) if evicted is not None else None
            pages = descriptor.page_count if descriptor is not None else 0
            size, users = self._base_uses.get((node_id, base_id), (pages * PAGE_BYTES, 1))
        return BaseShare(base_id, node_id, size, users, size // max(1, users))

    def shares_by_owner(self) -> dict[str, int]:
        """Bytes of the bases held here by who answers for them: sandboxes here, other nodes (and ops under way), nobody."""
        made = self.unpinned_by_maker()
        here = 0
        for entry in list(self._entries.values()):
            shares = self.base_shares(entry, made)
            here += sum(s.share_bytes for s in shares if s.node_id == self._bases.node_id)
        known = set(self._entries)
        unused = sum(
            b.slab.file_bytes
            for b in list(self._bases.bases.values())
            if not self._bases.pins.users(b.base_id) and b.sandbox_id not in known
        )
        peers = max(0, self._bases.used_bytes - here - unused)
        return {"sandboxes": here, "peers": peers, "nobody": unused}

    # --- functions -----------------------------------------------------------------------------------------
    def function_usage(self) -> tuple[FunctionUsage, ...]:
        """By function and tenant, the largest first and the smallest in one row where there are too many."""
        made = self.unpinned_by_maker()
        by_key: dict[tuple[str, str], list[FunctionUsage]] = defaultdict(list)
        for entry in list(self._entries.values()):
            one = _one(entry, self.share_bytes(entry, made), self._clock.now_s())
            by_key[one.function, one.tenant].append(one)
        rows = [_sum(key, of_one) for key, of_one in by_key.items()]
        ordered = sorted(rows, key=lambda r: (-abs(r.saved_bytes), -r.sandboxes, r.function, r.tenant))
        if len(ordered) > FUNCTION_ROWS_MAX:
            first, rest = ordered[: FUNCTION_ROWS_MAX - 1], ordered[FUNCTION_ROWS_MAX - 1 :]
            ordered = [*first, _sum((OTHERS, OTHERS), rest)]
        return tuple(ordered)


def _one(entry: SandboxEntry, share_bytes: int, now_s: float) -> FunctionUsage:
    dedupd = entry.state is S.DEDUP
    held = entry.held()
    return FunctionUsage(
        entry.spec.function,
        entry.spec.tenant,
        1,
        int(dedupd),
        entry.warm_bytes if dedupd else 0,
        held.kept_bytes if dedupd else 0,
        share_bytes,
        held.freed_bytes - share_bytes,
        held.present_bytes if dedupd else 0,
        entry.tick_at_op_bytes if dedupd else 0,
        held.touched_bytes,
        round(entry.saved.mean(now_s)),
        round(entry.saved.recent(now_s)),
    )


def _sum(key: tuple[str, str], rows: Iterable[FunctionUsage]) -> FunctionUsage:
    parts = list(rows)
    return FunctionUsage(*key, *(sum(getattr(r, name) for r in parts) for name in _SUMMED))
