"""The controller's handlers with an injected clock and store: no server, no sleeping."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import replace
from typing import ClassVar

import pytest

from medes import errors, limits
from medes.config import ControllerSettings
from medes.controller import checks
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
from medes.controller.state import ControllerState
from medes.types import AddressRange, BaseDescriptor, NodeEndpoints, NodeUsage, SandboxRecord, SandboxState
from tests.support.fingerprints import K, hashes, located, positions
from tests.support.store import ModelStore

LEASE_S = 5.0


@pytest.fixture
def state() -> ControllerState:
    return ControllerState(ControllerSettings(base_threshold=2, base_reservation_s=30), ModelStore())


def join(
    state: ControllerState,
    node: str = "n1",
    incarnation: str = "i1",
    now_s: float = 0.0,
    *,
    store: str = "",
    host: str = "",
    caller: str = "",
) -> None:
    endpoints = NodeEndpoints(node, f"{host or node}:1", f"{host or node}:2", ("tcp",), store)
    handlers.join_node(JoinNode(endpoints, 1 << 30, incarnation), state, now_s, caller)


def publish(state: ControllerState, base_id: int, node: str = "n1", function: str = "f") -> None:
    base = BaseDescriptor(base_id, (node,), "d", function, 2, (AddressRange(0, 4096),))
    handlers.publish_base(PublishBase(base, K, hashes(base_id, 2), positions(2)), state)


def lookup(state: ControllerState, seed: int, domain: str = "d") -> handlers.Lookup:
    return handlers.lookup_fingerprints(
        LookupFingerprints("n9", domain, K, hashes(seed, 2)), state, lambda: 0.0
    )


def announce(state: ControllerState, node: str, *records: SandboxRecord, full: bool = False) -> None:
    handlers.announce_sandboxes(AnnounceSandboxes(node, full, records), state)


def dedupd(i: int, node: str = "") -> SandboxRecord:
    return SandboxRecord(f"s{i}", node, "f", "d", SandboxState.DEDUP, 100, 10)


def advise(state: ControllerState, sandbox: str, node: str = "n1", now_s: float = 0.0) -> tuple[bool, str]:
    advice = handlers.advise_base(AdviseBase(node, "f", "d", sandbox), state, now_s)
    return advice.make_base, advice.reason


class TestMembership:
    def test_join_tells_the_clusters_settings(self, state: ControllerState) -> None:
        answer = handlers.join_node(JoinNode(NodeEndpoints("n"), 5, "i"), state, 0.0)
        settings = state.settings
        assert answer.samples_per_page == settings.samples_per_page
        assert (answer.heartbeat_interval_ms, answer.lease_ms) == (
            settings.heartbeat_interval_ms,
            settings.lease_ms,
        )
        assert answer.controller_incarnation == state.incarnation

    def test_silence_beyond_the_lease_is_death_and_takes_the_bases_along(
        self, state: ControllerState
    ) -> None:
        join(state, "n1")
        join(state, "n2")
        publish(state, 1, "n1")
        publish(state, 2, "n2")
        announce(state, "n1", dedupd(1))
        beat = Heartbeat("n2", "i1", NodeUsage(warm_bytes=7))
        assert not handlers.heartbeat(beat, state, LEASE_S).join_again
        assert expiry.expire(state, LEASE_S) == []
        assert expiry.expire(state, LEASE_S + 0.1) == ["n1"]
        assert expiry.expire(state, LEASE_S + 0.1) == []
        assert [b.base_id for b in state.store.bases()] == [2]
        assert handlers.list_sandboxes(ListSandboxes("", ""), state) == []
        by_id = {r.endpoints.node_id: r for r in handlers.list_nodes(state, LEASE_S + 0.1)}
        assert (by_id["n1"].alive, by_id["n2"].alive) == (False, True)
        assert by_id["n2"].usage.warm_bytes == 7
        assert by_id["n2"].last_heartbeat_age_ms in (99, 100)
        assert handlers.heartbeat(replace(beat, node_id="n1"), state, LEASE_S + 0.2).join_again

    def test_a_new_incarnation_voids_what_was_known(self, state: ControllerState) -> None:
        join(state, store="s.p")
        publish(state, 1)
        join(state, store="s.p")  # a reconnect of the same agent keeps all
        assert len(state.store.bases()) == 1
        join(state, incarnation="i2", store="s.p")
        assert state.store.bases() == []
        assert handlers.heartbeat(Heartbeat("n1", "i1", NodeUsage()), state, 0.0).join_again

    @pytest.mark.parametrize("store", ["", "s2.p1", "s1.p2"])
    def test_a_name_is_one_agents_while_its_lease_lasts(
        self, state: ControllerState, caplog: pytest.LogCaptureFixture, store: str
    ) -> None:
        """Another store, and a copy of the same store in another place (a cloned machine), are not heard."""
        join(state, store="s1.p1")
        publish(state, 1)
        for now_s in (1.0, 2.0, LEASE_S):
            with pytest.raises(errors.AlreadyExistsError, match=r"at n1:1, last heard of .* at other:1"):
                join(state, incarnation="i2", now_s=now_s, store=store, host="other")
        assert len([r for r in caplog.records if r.levelname == "ERROR"]) == 1  # once, not at every try
        handlers.leave_node("n1", state, "i2")
        assert len(state.store.bases()) == 1
        assert not handlers.heartbeat(Heartbeat("n1", "i1", NodeUsage()), state, LEASE_S).join_again
        join(state, incarnation="i2", now_s=2 * LEASE_S + 0.1, store=store)  # silent for a whole lease
        assert state.store.bases() == []

    def test_an_agent_that_was_restarted_joins_at_once(self, state: ControllerState) -> None:
        join(state, store="s1.p1")
        join(state, incarnation="i2", now_s=0.1, store="s1.p1", host="moved")
        assert handlers.list_nodes(state, 0.1)[0].endpoints.grpc_address == "moved:1"

    @pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "[::1]", "[::]", "localhost"])
    def test_a_node_that_others_cannot_reach_is_refused(self, state: ControllerState, host: str) -> None:
        for caller in ("", "unix:", "ipv4:127.0.0.1:5000", "ipv6:%5B::1%5D:5000"):
            join(state, "here", host=host, caller=caller)  # one machine
        for caller in ("ipv4:10.0.0.2:5000", "ipv6:%5Bfd00::2%5D:5000"):
            with pytest.raises(errors.InvalidArgumentError, match="peer_advertise"):
                join(state, "there", host=host, caller=caller)
        join(state, "there", host="10.0.0.2", caller="ipv4:10.0.0.2:5000")
        with pytest.raises(errors.InvalidArgumentError, match="other nodes cannot reach"):
            join(state, "here", host=host, caller="unix:")  # now there are others
        meant = ControllerState(ControllerSettings(local_nodes=True), ModelStore())
        join(meant, "there", host=host, caller="ipv4:10.0.0.2:5000")

    def test_unknown_nodes_must_join(self, state: ControllerState) -> None:
        assert handlers.heartbeat(Heartbeat("who", "i", NodeUsage()), state, 0.0).join_again
        for call in (
            lambda: publish(state, 1, "who"),
            lambda: announce(state, "who", dedupd(1)),
            lambda: advise(state, "s", "who"),
        ):
            with pytest.raises(errors.NotFoundError, match="join first"):
                call()

    def test_a_node_that_returns_while_it_is_declared_dead_keeps_what_it_announces(
        self, state: ControllerState
    ) -> None:
        """The retiring that its death began must end before its joining is answered."""
        join(state)
        store = state.store
        assert isinstance(store, ModelStore)
        retiring, go_on = threading.Event(), threading.Event()
        retire = store.retire_node

        def slow(node_id: str) -> int:
            retiring.set()
            assert go_on.wait(30)
            return retire(node_id)

        store.retire_node = slow  # type: ignore[method-assign]
        now_s = 2 * LEASE_S
        death = threading.Thread(target=expiry.expire, args=(state, now_s))
        death.start()
        assert retiring.wait(30)
        answered = threading.Event()

        def come_back() -> None:
            join(state, now_s=now_s)
            answered.set()
            publish(state, 1)

        back = threading.Thread(target=come_back)
        back.start()
        assert not answered.wait(0.2)
        go_on.set()
        death.join(30)
        back.join(30)
        assert [b.base_id for b in store.bases()] == [1]

    def test_leaving_twice_is_harmless(self, state: ControllerState) -> None:
        join(state)
        publish(state, 1)
        handlers.leave_node("n1", state)
        handlers.leave_node("n1", state)
        assert state.store.bases() == []
        assert handlers.list_nodes(state, 0.0) == []

    def test_the_long_dead_are_forgotten(self, state: ControllerState) -> None:
        join(state)
        expiry.expire(state, LEASE_S + 1)
        assert len(handlers.list_nodes(state, 0.0)) == 1
        expiry.expire(state, 200 * LEASE_S)
        assert handlers.list_nodes(state, 0.0) == []

    def test_bases_of_nodes_that_no_controller_hears_leave_a_lasting_store(
        self, state: ControllerState
    ) -> None:
        class LastingStore(ModelStore):
            leases: ClassVar[dict[str, float]] = {}

            def renew(self, node_ids: Iterable[str], lease_s: float) -> set[str]:
                new = set(node_ids) - self.leases.keys()
                self.leases.update(dict.fromkeys(node_ids, lease_s))
                return new

            def orphans(self) -> set[str]:
                return {h for b in self.bases() for h in b.holders} - self.leases.keys()

        state.store = LastingStore()
        for base_id, node in ((1, "ours"), (2, "another-controllers"), (3, "dead")):
            state.store.publish(
                BaseDescriptor(base_id, (node,), "d", "f", 2), hashes(base_id, 2), positions(2), K
            )
        state.store.renew(["another-controllers"], 1)
        state.membership.join(NodeEndpoints("ours"), "i", 0, 0.0)
        expiry.expire(state, 1.0)
        assert {h for b in state.store.bases() for h in b.holders} == {"ours", "another-controllers"}
        assert LastingStore.leases["ours"] == 2 * LEASE_S
        before = state.incarnation
        expiry.expire(state, 1.5)
        assert state.incarnation == before
        LastingStore.leases.clear()  # flushed
        expiry.expire(state, 2.0)
        assert state.incarnation != before  # so that nodes announce what they have
        again = state.incarnation
        expiry.expire(state, 2.5)
        assert state.incarnation == again


class TestRegistry:
    def test_lookup_brings_bases_and_where_they_are(self, state: ControllerState) -> None:
        join(state, "n1")
        publish(state, 1)
        answer = lookup(state, 1)
        assert [b.base_id for b in answer.bases] == [1]
        assert [h.page_address for h in answer.holders] == ["n1:2"]
        assert all(s for page in located(answer.locations) for s in page)
        statistics = state.statistics()
        assert (statistics.lookups, statistics.lookup_pages, statistics.bases) == (1, 2, 1)

    def test_retire_is_idempotent(self, state: ControllerState) -> None:
        join(state)
        publish(state, 1)
        handlers.retire_base(RetireBase(1, "n1"), state)
        handlers.retire_base(RetireBase(1, "n1"), state)
        assert state.store.bases() == []

    def test_a_base_published_while_its_node_dies_does_not_stay(self, state: ControllerState) -> None:
        join(state)
        store = state.store
        assert isinstance(store, ModelStore)
        insert = store.publish

        def die_meanwhile(*arguments: object) -> None:
            expiry.expire(state, 10 * LEASE_S)
            insert(*arguments)  # type: ignore[arg-type]

        store.publish = die_meanwhile  # type: ignore[method-assign]
        with pytest.raises(errors.NotFoundError):
            publish(state, 1)
        assert store.bases() == []

    @pytest.mark.parametrize(
        ("change", "error"),
        [
            ({"samples_per_page": 4}, errors.InvalidArgumentError),
            ({"samples_per_page": 0}, errors.InvalidArgumentError),
            ({"hashes": b"x" * 63}, errors.InvalidArgumentError),
            ({"domain": ""}, errors.InvalidArgumentError),
            ({"domain": "d" * (limits.NAME_CHARS_MAX + 1)}, errors.LimitExceededError),
            ({"domain": "a\x00b"}, errors.InvalidArgumentError),
        ],
    )
    def test_malformed_lookups(
        self, state: ControllerState, change: dict[str, object], error: type[errors.MedesError]
    ) -> None:
        good = LookupFingerprints("n", "d", K, hashes(1, 2))
        with pytest.raises(error):
            handlers.lookup_fingerprints(replace(good, **change), state, lambda: 0.0)  # type: ignore[arg-type]
        assert state.statistics().lookups == 0

    def test_too_many_pages(self, state: ControllerState, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(checks, "LOOKUP_PAGES_MAX", 1)
        with pytest.raises(errors.LimitExceededError, match="2 pages"):
            lookup(state, 1)

    @pytest.mark.parametrize(
        "change",
        [
            {"base_id": 0},
            {"page_count": 3},
            {"page_count": 0},
            {"domain": ""},
            {"function": ""},
            {"holders": ("",)},
            {"holders": ("n1", "n2")},
            {"holders": ("n1", "n1")},
            {"ranges": (AddressRange(5, 5),)},
            {"ranges": (AddressRange(0, 1),) * 9},
        ],
    )
    def test_malformed_bases(self, state: ControllerState, change: dict[str, object]) -> None:
        join(state)
        base = replace(BaseDescriptor(1, ("n1",), "d", "f", 2), **change)  # type: ignore[arg-type]
        with pytest.raises((errors.InvalidArgumentError, errors.LimitExceededError)):
            handlers.publish_base(PublishBase(base, K, hashes(1, 2), positions(2)), state)
        with pytest.raises(errors.InvalidArgumentError, match="positions"):
            handlers.publish_base(
                PublishBase(BaseDescriptor(1, ("n1",), "d", "f", 2), K, hashes(1, 2), positions(1)), state
            )
        assert state.store.bases() == []

    @pytest.mark.parametrize(
        "endpoints",
        [
            NodeEndpoints(""),
            NodeEndpoints("n" * 201),
            NodeEndpoints("n", "nonsense"),
            NodeEndpoints("n", "h:1", "h" * 400 + ":1"),
            NodeEndpoints("n", transports=("tcp",) * 9),
            NodeEndpoints("n\n"),
        ],
    )
    def test_malformed_joins(self, state: ControllerState, endpoints: NodeEndpoints) -> None:
        with pytest.raises((errors.InvalidArgumentError, errors.LimitExceededError)):
            handlers.join_node(JoinNode(endpoints, 0, "i"), state, 0.0)
        assert handlers.list_nodes(state, 0.0) == []


class TestDirectory:
    def test_full_replaces_and_changes_add(self, state: ControllerState) -> None:
        join(state, "n1")
        join(state, "n2")
        announce(state, "n1", dedupd(1), dedupd(2))
        announce(state, "n2", dedupd(3))
        announce(state, "n1", replace(dedupd(2), state=SandboxState.WARM), dedupd(4))
        listed = handlers.list_sandboxes(ListSandboxes("f", ""), state)
        assert [(r.sandbox_id, r.node_id) for r in listed] == [
            ("s1", "n1"),
            ("s2", "n1"),
            ("s4", "n1"),
            ("s3", "n2"),
        ]
        assert state.directory.dedup_count("f", "d") == 3
        announce(state, "n1", dedupd(4), full=True)
        assert [r.sandbox_id for r in handlers.list_sandboxes(ListSandboxes("", "n1"), state)] == ["s4"]
        assert state.directory.dedup_count("f", "d") == 2
        announce(state, "n1", replace(dedupd(4), state=SandboxState.PURGED))
        assert handlers.list_sandboxes(ListSandboxes("", "n1"), state) == []
        assert state.directory.state_counts()[SandboxState.DEDUP] == 1
        announce(state, "n2", full=True)
        assert state.directory.dedup_count("f", "d") == 0
        assert handlers.list_sandboxes(ListSandboxes("other", ""), state) == []

    def test_bounds(self, state: ControllerState, monkeypatch: pytest.MonkeyPatch) -> None:
        from medes.controller.members import directory

        join(state)
        monkeypatch.setattr(directory, "SANDBOXES_PER_NODE_MAX", 2)
        announce(state, "n1", dedupd(1), dedupd(2))
        announce(state, "n1", dedupd(2))
        with pytest.raises(errors.LimitExceededError):
            announce(state, "n1", dedupd(3))
        announce(state, "n1", dedupd(3), dedupd(4), full=True)
        assert state.directory.dedup_count("f", "d") == 2
        with pytest.raises(errors.InvalidArgumentError, match="for node n7"):
            announce(state, "n1", dedupd(1, "n7"))
        with pytest.raises(errors.InvalidArgumentError):
            announce(state, "n1", replace(dedupd(1), sandbox_id=""))


class TestAdvice:
    def test_only_one_becomes_the_first_base(self, state: ControllerState) -> None:
        join(state)
        join(state, "n2")
        assert advise(state, "s1") == (True, "first_base")
        assert advise(state, "s2") == (False, "being_made")
        assert advise(state, "s1", "n2") == (False, "being_made")
        assert advise(state, "s1") == (True, "first_base")  # asking again is no second sandbox
        publish(state, 1)
        assert advise(state, "s2") == (False, "enough_bases")

    def test_a_reservation_ends_with_time_or_its_node(self, state: ControllerState) -> None:
        join(state)
        join(state, "n2")
        assert advise(state, "s1", now_s=0)[0]
        assert not advise(state, "s2", "n2", now_s=30 - 0.1)[0]
        assert advise(state, "s2", "n2", now_s=30 + 0.1)[0]
        handlers.leave_node("n2", state)
        assert advise(state, "s3", now_s=30.2)[0]

    def test_threshold_counts_bases_being_made(self, state: ControllerState) -> None:
        join(state)
        advise(state, "s0")
        publish(state, 1)
        announce(state, "n1", dedupd(1), dedupd(2))
        assert advise(state, "s3") == (False, "enough_bases")  # 2 per base is not more than T = 2
        announce(state, "n1", dedupd(3))
        assert advise(state, "s4") == (True, "over_threshold")
        assert advise(state, "s5") == (False, "enough_bases")  # 3 over two bases, one of them being made
        publish(state, 2)
        assert advise(state, "s5") == (False, "enough_bases")
        announce(state, "n1", *(dedupd(i) for i in range(4, 6)))
        assert advise(state, "s6") == (True, "over_threshold")

    def test_functions_and_domains_are_apart(self, state: ControllerState) -> None:
        join(state)
        assert advise(state, "s1")[0]
        for function, domain in (("g", "d"), ("f", "e")):
            assert handlers.advise_base(AdviseBase("n1", function, domain, "s1"), state, 0.0).make_base
