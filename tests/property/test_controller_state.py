"""Any sequence of calls and silences: the controller's tables agree with each other and with a plain model."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from medes.config import ControllerSettings
from medes.controller.api import handlers
from medes.controller.api.requests import (
    AdviseBase,
    AnnounceSandboxes,
    Heartbeat,
    JoinNode,
    ListSandboxes,
    LookupFingerprints,
    PublishBase,
    RetireBase,
)
from medes.controller.members import expiry
from medes.controller.registry.store import MemoryStore
from medes.controller.state import ControllerState
from medes.errors import AlreadyExistsError, NotFoundError, PermissionDeniedError
from medes.types import BaseDescriptor, NodeEndpoints, NodeUsage, SandboxRecord, SandboxState
from tests.support.fingerprints import K, hashes, positions

NODES = st.sampled_from(["n1", "n2", "n3"])
FUNCTIONS = st.sampled_from(["f", "g"])
DOMAINS = st.sampled_from(["d", "e"])
BASE_IDS = st.integers(1, 6)
LEASE_S = 5.0
RESERVATION_S = 7.0
THRESHOLD = 2


class ControllerMachine(RuleBasedStateMachine):
    """The model: who is alive until when, which bases are published, which sandboxes are known."""

    def __init__(self) -> None:
        super().__init__()
        config = ControllerSettings(base_threshold=THRESHOLD, base_reservation_s=RESERVATION_S)
        self.state = ControllerState(config, MemoryStore())
        self.now_s = 0.0
        self.alive: dict[str, tuple[int, float]] = {}  # node → (incarnation, last heartbeat)
        self.bases: dict[int, BaseDescriptor] = {}
        self.sandboxes: dict[tuple[str, str], SandboxRecord] = {}
        self.reserved: dict[tuple[str, str], list[tuple[str, str, float]]] = {}

    def forget(self, node: str) -> None:
        self.alive.pop(node, None)
        self.bases = {i: b for i, b in self.bases.items() if node not in b.holders}
        self.sandboxes = {k: r for k, r in self.sandboxes.items() if k[0] != node}
        self.reserved = {k: [r for r in held if r[0] != node] for k, held in self.reserved.items()}

    @rule(node=NODES, incarnation=st.integers(1, 2))
    def join(self, node: str, incarnation: int) -> None:
        request = JoinNode(NodeEndpoints(node), 1, str(incarnation))
        holder, beat_s = self.alive.get(node, (incarnation, 0.0))
        if (
            holder != incarnation and self.now_s - beat_s <= LEASE_S
        ):  # another agent's name under a live lease
            with pytest.raises(AlreadyExistsError):
                handlers.join_node(request, self.state, self.now_s)
            return
        handlers.join_node(request, self.state, self.now_s)
        if self.alive.get(node, (0, 0.0))[0] != incarnation:
            self.forget(node)
        self.alive[node] = (incarnation, self.now_s)

    @rule(node=NODES, incarnation=st.integers(1, 2))
    def heartbeat(self, node: str, incarnation: int) -> None:
        answer = handlers.heartbeat(Heartbeat(node, str(incarnation), NodeUsage()), self.state, self.now_s)
        known = self.alive.get(node, (0, 0.0))[0] == incarnation
        assert answer.join_again != known
        if known:
            self.alive[node] = (incarnation, self.now_s)

    @rule(node=NODES)
    def leave(self, node: str) -> None:
        handlers.leave_node(node, self.state)
        self.forget(node)

    @rule(seconds=st.floats(0.1, 6))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        died = expiry.expire(self.state, self.now_s)
        expected = [n for n, (_, beat_s) in self.alive.items() if self.now_s - beat_s > LEASE_S]
        assert sorted(died) == sorted(expected)
        for node in expected:
            self.forget(node)

    @rule(node=NODES, base_id=BASE_IDS, function=FUNCTIONS, domain=DOMAINS)
    def publish(self, node: str, base_id: int, function: str, domain: str) -> None:
        base = BaseDescriptor(base_id, (node,), domain, function, 2)
        try:
            handlers.publish_base(PublishBase(base, K, hashes(base_id, 2), positions(2)), self.state)
        except NotFoundError:
            assert node not in self.alive
        except AlreadyExistsError:
            assert self.bases[base_id] != base
        else:
            assert node in self.alive
            assert self.bases.get(base_id, base) == base
            self.bases[base_id] = base
            held = self.reserved.get((function, domain), [])
            mine = next((r for r in held if r[0] == node), None)
            if mine:
                held.remove(mine)

    @rule(node=NODES, base_id=BASE_IDS)
    def retire(self, node: str, base_id: int) -> None:
        try:
            handlers.retire_base(RetireBase(base_id, node), self.state)
        except PermissionDeniedError:
            assert node not in self.bases[base_id].holders
        else:
            assert base_id not in self.bases or node in self.bases[base_id].holders
            self.bases.pop(base_id, None)

    @rule(
        node=NODES,
        function=FUNCTIONS,
        domain=DOMAINS,
        name=st.sampled_from("abc"),
        state=st.sampled_from([SandboxState.WARM, SandboxState.DEDUP, SandboxState.PURGED]),
        full=st.booleans(),
    )
    def announce(
        self, node: str, function: str, domain: str, name: str, state: SandboxState, full: bool
    ) -> None:
        record = SandboxRecord(name, node, function, domain, state)
        with contextlib.suppress(NotFoundError):
            handlers.announce_sandboxes(AnnounceSandboxes(node, full, (record,)), self.state)
            assert node in self.alive
            if full:
                self.sandboxes = {k: r for k, r in self.sandboxes.items() if k[0] != node}
            self.sandboxes.pop((node, name), None)
            if state is not SandboxState.PURGED:
                self.sandboxes[(node, name)] = record
            return
        assert node not in self.alive

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), function=FUNCTIONS, domain=DOMAINS, sandbox=st.sampled_from("abc"))
    def advise(self, data: st.DataObject, function: str, domain: str, sandbox: str) -> None:
        node = data.draw(st.sampled_from(sorted(self.alive)))
        advice = handlers.advise_base(AdviseBase(node, function, domain, sandbox), self.state, self.now_s)
        key = (function, domain)
        others = [
            r for r in self.reserved.get(key, []) if r[2] > self.now_s and (r[0], r[1]) != (node, sandbox)
        ]
        bases = sum((b.function, b.domain) == key for b in self.bases.values()) + len(others)
        dedups = sum(
            (r.function, r.domain) == key and r.state is SandboxState.DEDUP for r in self.sandboxes.values()
        )
        assert advice.make_base == (bases == 0 or dedups / bases > THRESHOLD)
        self.reserved[key] = others
        if advice.make_base:
            self.reserved[key].append((node, sandbox, self.now_s + RESERVATION_S))

    @rule(base_id=BASE_IDS, domain=DOMAINS)
    def lookup(self, base_id: int, domain: str) -> None:
        request = LookupFingerprints("n1", domain, K, hashes(base_id, 2))
        answer = handlers.lookup_fingerprints(request, self.state, lambda: self.now_s)
        wanted = [b for b in self.bases.values() if b.base_id == base_id and b.domain == domain]
        assert list(answer.bases) == wanted
        assert {h.node_id for h in answer.holders} == {h for b in wanted for h in b.holders}

    @invariant()
    def tables_agree(self) -> None:
        assert {b.base_id: b for b in self.state.store.bases()} == self.bases
        listed = handlers.list_sandboxes(ListSandboxes("", ""), self.state)
        assert {(r.node_id, r.sandbox_id): r for r in listed} == self.sandboxes
        records = handlers.list_nodes(self.state, self.now_s)
        assert {r.endpoints.node_id for r in records if r.alive} == set(self.alive)
        assert {h for b in self.bases.values() for h in b.holders} <= set(self.alive)
        statistics = self.state.statistics()
        assert (statistics.bases, statistics.nodes_alive) == (len(self.bases), len(self.alive))
        assert statistics.registry_hashes == 2 * K * len(self.bases)


TestController = ControllerMachine.TestCase
TestController.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
