"""Which nodes are there: leases renewed by heartbeats. Times come from the caller. Thread-safe."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from medes.errors import AlreadyExistsError, LimitExceededError, NotFoundError
from medes.limits import NODES_MAX
from medes.types import FunctionUsage, NodeEndpoints, NodeRecord, NodeUsage


@dataclass(slots=True)
class _Node:
    endpoints: NodeEndpoints
    incarnation: str
    usage: NodeUsage
    heartbeat_s: float
    alive: bool = True
    functions: tuple[FunctionUsage, ...] = ()


class Membership:
    """Nodes by id. A node silent for longer than lease_s is dead until it joins again."""

    def __init__(self, lease_s: float) -> None:
        self._lease_s = lease_s
        self._nodes: dict[str, _Node] = {}
        self._lock = threading.Lock()

    def join(self, endpoints: NodeEndpoints, incarnation: str, memory_bytes: int, now_s: float) -> bool:
        """Adds or renews a node. True when what was known of it is void (a restart, or it was dead or unknown).

        Raises already_exists when another agent holds the name's lease (one of the same store in the same place is
        the same agent, started again), and limit_exceeded when there are too many nodes.
        """
        with self._lock:
            known = self._nodes.get(endpoints.node_id)
            if known is not None and self._is_anothers(known, endpoints, incarnation, now_s):
                at = known.endpoints.grpc_address or "an unknown address"
                raise AlreadyExistsError(
                    f"another agent has this name: at {at}, last heard of {max(0.0, now_s - known.heartbeat_s):.1f} s ago; "
                    f"this one is at {endpoints.grpc_address or 'an unknown address'}",
                    object=f"node {endpoints.node_id}",
                    hint="give each agent a node_id of its own",
                )
            if known is None and len(self._nodes) >= NODES_MAX:
                raise LimitExceededError(f"a cluster has at most {NODES_MAX} nodes", object=endpoints.node_id)
            fresh = known is None or known.incarnation != incarnation or not known.alive
            usage = NodeUsage(memory_bytes=memory_bytes) if fresh or known is None else known.usage
            self._nodes[endpoints.node_id] = _Node(endpoints, incarnation, usage, now_s)
            return fresh

    def _is_anothers(self, known: _Node, endpoints: NodeEndpoints, incarnation: str, now_s: float) -> bool:
        if not known.alive or known.incarnation == incarnation or now_s - known.heartbeat_s > self._lease_s:
            return False
        return not endpoints.store or endpoints.store != known.endpoints.store

    def heartbeat(
        self,
        node_id: str,
        incarnation: str,
        usage: NodeUsage,
        now_s: float,
        functions: tuple[FunctionUsage, ...] | None = None,
    ) -> bool:
        """Renews the lease. False: the node is unknown, dead or another incarnation, and must join again."""
        with self._lock:
            node = self._nodes.get(node_id)
            if node is None or not node.alive or node.incarnation != incarnation:
                return False
            node.heartbeat_s = now_s
            node.usage = usage
            if functions is not None:
                node.functions = functions
            return True

    def expire(self, now_s: float) -> list[str]:
        """Marks the silent nodes dead and returns those that died by this call; forgets the long dead."""
        with self._lock:
            died = []
            for node_id, node in list(self._nodes.items()):
                silent_s = now_s - node.heartbeat_s
                if node.alive and silent_s > self._lease_s:
                    node.alive = False
                    died.append(node_id)
                elif not node.alive and silent_s > 100 * self._lease_s:
                    del self._nodes[node_id]
            return died

    def leave(self, node_id: str, incarnation: str = "") -> bool:
        """Forgets a node; False when it was not there, or another incarnation of it is."""
        with self._lock:
            node = self._nodes.get(node_id)
            if node is not None and incarnation not in ("", node.incarnation):
                return False
            return self._nodes.pop(node_id, None) is not None

    def require(self, node_id: str) -> None:
        """Raises not_found unless the node is a live member."""
        with self._lock:
            node = self._nodes.get(node_id)
            if node is None or not node.alive:
                raise NotFoundError(
                    "not a live member of the cluster", object=f"node {node_id}", hint="join first"
                )

    def endpoints(self, node_ids: set[str]) -> tuple[NodeEndpoints, ...]:
        """Where the live ones among these nodes listen, by id."""
        with self._lock:
            found = (self._nodes.get(n) for n in sorted(node_ids))
            return tuple(n.endpoints for n in found if n is not None and n.alive)

    def records(self, now_s: float) -> list[NodeRecord]:
        """All nodes, by id."""
        with self._lock:
            return [
                NodeRecord(
                    n.endpoints, n.usage, n.alive, max(0, int((now_s - n.heartbeat_s) * 1000)), n.functions
                )
                for _, n in sorted(self._nodes.items())
            ]

    def alive_ids(self) -> set[str]:
        with self._lock:
            return {node_id for node_id, node in self._nodes.items() if node.alive}

    def alive_count(self) -> int:
        return len(self.alive_ids())
