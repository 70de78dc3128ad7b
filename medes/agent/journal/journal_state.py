"""What the journal's records (medes.agent.journal.records) add up to: a pure reduction, and the snapshot that compaction
writes.

Unknown kinds come from a newer agent: they are kept through compactions, for it. A known one that lacks what it needs
counts as damaged.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from medes.agent.journal import records
from medes.agent.journal.records import DEDUP, DEDUPING, LOST, RESTORING, WARM, Record
from medes.limits import JOURNAL_UNKNOWN_RECORDS_MAX


# What is of another type is of no use: such a record is damaged, whatever its checksum says.
def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("not text")
    return value


def _number(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError("not a whole number")
    return value


def _numbers(value: Any) -> list[int]:
    if not isinstance(value, (list, tuple)):
        raise TypeError("not a list")
    return [_number(v) for v in value]


def _table(value: Any) -> Record:
    if not isinstance(value, dict):
        raise TypeError("not a table")
    return value


@dataclass(slots=True)
class JournalSandbox:
    """A sandbox as last journalled."""

    spec: Record
    phase: str = WARM
    path: str = ""
    holder: str = ""
    pins: dict[str, list[int]] = field(default_factory=dict)
    figures: Record = field(default_factory=dict)
    lost_reason: str = ""
    lost_finally: bool = False


@dataclass(slots=True)
class JournalBase:
    """A base of this node as last journalled."""

    descriptor: Record
    path: str
    sandbox_id: str = ""
    retired: bool = False


@dataclass(slots=True)
class JournalState:
    """The sum of the records."""

    node: Record = field(default_factory=dict)
    sandboxes: dict[str, JournalSandbox] = field(default_factory=dict)
    bases: dict[int, JournalBase] = field(default_factory=dict)
    # (node, holder) → (domain, base ids): pins that others hold here
    pins: dict[tuple[str, str], tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    peers: dict[str, Record] = field(default_factory=dict)
    unknown: list[Record] = field(default_factory=list)
    damaged_records: int = 0

    def apply(self, record: Record) -> None:
        """Adds one record. Never raises: what it cannot use is kept (unknown kinds) or counted."""
        try:
            self._apply(record)
        except (KeyError, TypeError):
            self.damaged_records += 1

    def _apply(self, record: Record) -> None:
        kind = record.get("t")
        if kind in (DEDUPING, DEDUP, RESTORING, WARM, LOST, records.PURGED):
            self._apply_sandbox(kind, record)
        elif kind == records.SANDBOX:
            spec = _table(record["spec"])
            # Registered again: settings change, the phase does not.
            self.sandboxes.setdefault(_text(spec["sandbox_id"]), JournalSandbox(spec)).spec = spec
        elif kind == records.BASE:
            descriptor = _table(record["descriptor"])
            base = JournalBase(descriptor, _text(record["path"]), _text(record.get("sandbox_id", "")))
            self.bases[_number(descriptor["base_id"])] = base
        elif kind == records.BASE_RETIRED:
            if base_known := self.bases.get(_number(record["base_id"])):
                base_known.retired = True
        elif kind == records.BASE_GONE:
            self.bases.pop(_number(record["base_id"]), None)
        elif kind == records.PINS:
            key = (_text(record["node"]), _text(record["holder"]))
            if base_ids := _numbers(record["base_ids"]):
                self.pins[key] = (_text(record.get("domain", "")), tuple(base_ids))
            else:
                self.pins.pop(key, None)
        elif kind == records.PEER:
            endpoints = _table(record["endpoints"])
            self.peers[_text(endpoints["node_id"])] = endpoints
        elif kind == records.NODE:
            self.node.update({k: v for k, v in record.items() if k != "t"})
        else:
            self.unknown = [*self.unknown, record][-JOURNAL_UNKNOWN_RECORDS_MAX:]

    def _apply_sandbox(self, kind: str, record: Record) -> None:
        sandbox = self.sandboxes.get(_text(record["id"]))
        if sandbox is None:
            return  # purged meanwhile, or its registration line was damaged
        if kind == records.PURGED:
            del self.sandboxes[record["id"]]
            return
        reason = _text(record.get("reason", ""))
        if kind in (DEDUPING, DEDUP):
            # All of it first: half a record is taken by nobody.
            path, holder = _text(record["path"]), _text(record["holder"])
            pins = {node: _numbers(ids) for node, ids in _table(record["pins"]).items()}
            figures = _table(record.get("figures", {}))
            sandbox.path, sandbox.holder, sandbox.pins, sandbox.figures = path, holder, pins, figures
        elif kind == WARM:
            sandbox.path, sandbox.holder, sandbox.pins, sandbox.figures = "", "", {}, {}
        sandbox.phase = kind
        sandbox.lost_reason = reason if kind == LOST else ""
        sandbox.lost_finally = kind == LOST and bool(record.get("final", False))

    @classmethod
    def replay(cls, records: Iterable[Record]) -> JournalState:
        """The state after all records."""
        state = cls()
        for record in records:
            state.apply(record)
        return state

    def snapshot(self) -> Iterator[Record]:
        """Records that replay to an equal state."""
        if self.node:
            yield records.node(**self.node)
        for endpoints in self.peers.values():
            yield records.peer(endpoints)
        for base_id, base in self.bases.items():
            yield records.base(base.descriptor, base.path, base.sandbox_id)
            if base.retired:
                yield records.base_retired(base_id)
        for (node, holder), (domain, ids) in self.pins.items():
            yield records.pins(node, holder, domain, ids)
        for sandbox_id, sandbox in self.sandboxes.items():
            yield records.sandbox(sandbox.spec)
            yield from self._snapshot_phase(sandbox_id, sandbox)
        yield from self.unknown

    @staticmethod
    def _snapshot_phase(sandbox_id: str, sandbox: JournalSandbox) -> Iterator[Record]:
        if sandbox.path:
            if sandbox.phase == DEDUPING:
                yield records.deduping(sandbox_id, sandbox.path, sandbox.holder, sandbox.pins)
            else:
                yield records.dedup(sandbox_id, sandbox.path, sandbox.holder, sandbox.pins, sandbox.figures)
        if sandbox.phase == RESTORING:
            yield records.restoring(sandbox_id)
        elif sandbox.phase == LOST:
            yield records.lost(sandbox_id, sandbox.lost_reason, final=sandbox.lost_finally)
