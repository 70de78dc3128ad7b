"""Which sandboxes there are, as their agents announce them (soft state). Thread-safe."""

from __future__ import annotations

import threading
from collections import Counter

from medes.errors import LimitExceededError
from medes.limits import SANDBOXES_PER_NODE_MAX
from medes.types import SandboxRecord, SandboxState


class Directory:
    """Records by node and sandbox id, with the counts that base demarcation needs kept up to date."""

    def __init__(self) -> None:
        self._nodes: dict[str, dict[str, SandboxRecord]] = {}
        self._dedup_counts: Counter[tuple[str, str]] = Counter()
        self._hosted: Counter[tuple[str, str]] = Counter()  # (node, domain) → sandboxes
        self._lock = threading.Lock()

    def announce(self, node_id: str, sandboxes: tuple[SandboxRecord, ...], *, full: bool) -> None:
        """Adds or replaces records; `full` replaces all of the node's. A purged sandbox leaves.

        Raises limit_exceeded, changing nothing, when the node would have too many.
        """
        changes = {record.sandbox_id: record for record in sandboxes}
        with self._lock:
            known = self._nodes.get(node_id, {})
            kept = {i for i, r in changes.items() if r.state is not SandboxState.PURGED}
            total = len(kept) if full else len(known) + len(kept - known.keys())
            if total > SANDBOXES_PER_NODE_MAX:
                raise LimitExceededError(
                    f"a node has at most {SANDBOXES_PER_NODE_MAX} sandboxes", object=node_id
                )
            if full:
                for sandbox_id in known.keys() - changes.keys():
                    self._set(node_id, known, sandbox_id, None)
            table = self._nodes.setdefault(node_id, known)
            for sandbox_id, record in changes.items():
                self._set(node_id, table, sandbox_id, record if sandbox_id in kept else None)
            if not table:
                del self._nodes[node_id]

    def drop_node(self, node_id: str) -> None:
        with self._lock:
            table = self._nodes.pop(node_id, {})
            for sandbox_id in list(table):
                self._set(node_id, table, sandbox_id, None)

    def _set(
        self, node_id: str, table: dict[str, SandboxRecord], sandbox_id: str, record: SandboxRecord | None
    ) -> None:
        """Replaces one record (None: removes it) and keeps the counts right."""
        old = table.pop(sandbox_id, None)
        if old is not None:
            _count_down(self._hosted, (node_id, old.domain))
        if old is not None and old.state is SandboxState.DEDUP:
            _count_down(self._dedup_counts, (old.function, old.domain))
        if record is not None:
            table[sandbox_id] = record
            self._hosted[node_id, record.domain] += 1
            if record.state is SandboxState.DEDUP:
                self._dedup_counts[(record.function, record.domain)] += 1

    def has_sandboxes(self, node_id: str, domain: str) -> bool:
        """Whether a node has a sandbox in a domain."""
        with self._lock:
            return (node_id, domain) in self._hosted

    def nodes_in(self, domains: set[str]) -> set[str]:
        """The nodes with sandboxes in any of the domains."""
        with self._lock:
            return {node_id for node_id, domain in self._hosted if domain in domains}

    def domains_of(self, node_id: str) -> set[str]:
        """The domains in which a node has sandboxes."""
        with self._lock:
            return {domain for node, domain in self._hosted if node == node_id}

    def list(self, function: str = "", node_id: str = "") -> list[SandboxRecord]:
        """Records by node and id; empty arguments match all."""
        with self._lock:
            nodes = [node_id] if node_id else sorted(self._nodes)
            return [
                record
                for node in nodes
                for _, record in sorted(self._nodes.get(node, {}).items())
                if not function or record.function == function
            ]

    def dedup_count(self, function: str, domain: str) -> int:
        """Sandboxes of a function in a domain that are dedup'd now."""
        with self._lock:
            return self._dedup_counts[(function, domain)]

    def state_counts(self) -> dict[SandboxState, int]:
        """How many sandboxes are in each state, every state named."""
        with self._lock:
            counts = Counter(r.state for table in self._nodes.values() for r in table.values())
        return {state: counts[state] for state in SandboxState if state is not SandboxState.UNSPECIFIED}


def _count_down(counts: Counter[tuple[str, str]], key: tuple[str, str]) -> None:
    """Functions, nodes and domains come and go: those without sandboxes must not stay behind."""
    counts[key] -= 1
    if not counts[key]:
        del counts[key]
