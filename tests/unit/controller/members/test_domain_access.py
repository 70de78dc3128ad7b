"""Least knowledge at the controller: a node hears of the domains that it hosts, within its certificate, and of nothing
else; what it asks about others is answered as if nothing were there."""

from __future__ import annotations

from typing import Any

import pytest

from medes.certs.parties import Party, Role
from medes.config import ControllerSettings
from medes.controller.api import handlers
from medes.controller.api.requests import (
    AdviseBase,
    AnnounceSandboxes,
    JoinNode,
    LookupFingerprints,
    PublishBase,
)
from medes.controller.registry.store import MemoryStore
from medes.controller.state import ControllerState
from medes.errors import PermissionDeniedError
from medes.types import BaseDescriptor, NodeEndpoints, SandboxRecord, SandboxState
from tests.support.fingerprints import K, hashes, positions

PAGES = 4


@pytest.fixture
def state() -> ControllerState:
    """Node "bank" holds base 1 in domain "bank" and "shop" base 2 in "shop"; each hosts its own domain."""
    made = ControllerState(ControllerSettings(), MemoryStore())
    for base_id, name in enumerate(("bank", "shop"), 1):
        endpoints = NodeEndpoints(name, f"{name}:1", f"{name}:2", ("tcp",))
        handlers.join_node(JoinNode(endpoints, 1 << 30, name), made, 0.0)
        announce(made, name, name)
        base = BaseDescriptor(base_id, (name,), name, "f", PAGES)
        request = PublishBase(base, K, hashes(base_id, PAGES), positions(PAGES))
        handlers.publish_base(request, made, node(name))
    return made


def node(name: str, *domains: str) -> Party:
    return Party(Role.NODE, name, frozenset(domains) or None)


def announce(
    made: ControllerState,
    name: str,
    domain: str,
    party: Party | None = None,
    state: SandboxState = SandboxState.WARM,
) -> None:
    record = SandboxRecord(f"{name}-{domain}", name, "f", domain, state)
    handlers.announce_sandboxes(AnnounceSandboxes(name, False, (record,)), made, party or node(name))


def found(state: ControllerState, party: Party | None, domain: str, base_id: int) -> list[int]:
    request = LookupFingerprints(party.name if party else "x", domain, K, hashes(base_id, PAGES))
    return [b.base_id for b in handlers.lookup_fingerprints(request, state, lambda: 0.0, party).bases]


def test_a_node_finds_bases_where_it_has_sandboxes(state: ControllerState) -> None:
    assert found(state, node("bank"), "bank", 1) == [1]
    assert found(state, node("shop"), "bank", 1) == []
    assert state.domain_access.withheld == 1
    announce(state, "shop", "bank")
    assert found(state, node("shop"), "bank", 1) == [1]
    announce(state, "shop", "bank", state=SandboxState.PURGED)
    assert found(state, node("shop"), "bank", 1) == [], "with its last sandbox the domain is gone"


def test_what_is_withheld_looks_like_what_is_not_there(state: ControllerState) -> None:
    def answer(domain: str, base_id: int) -> Any:
        request = LookupFingerprints("shop", domain, K, hashes(base_id, PAGES))
        return handlers.lookup_fingerprints(request, state, lambda: 0.0, node("shop"))

    assert answer("bank", 1) == answer("nobody", 1) == answer("shop", 77)

    def advice(domain: str) -> Any:
        return handlers.advise_base(AdviseBase("shop", "f", domain, "s"), state, 0.0, node("shop"))

    assert advice("bank") == advice("nobody")
    announce(state, "bank", "new")
    own = handlers.advise_base(AdviseBase("bank", "f", "new", "s"), state, 0.0, node("bank"))
    assert own.make_base, "the stranger's question about a domain reserved nothing in it"


def test_a_certificate_keeps_a_node_out_of_domains_that_it_claims(state: ControllerState) -> None:
    narrow = node("shop", "shop")
    announce(state, "shop", "bank", narrow)
    assert found(state, narrow, "bank", 1) == []
    assert [r.domain for r in state.directory.list(node_id="shop")] == ["shop"]
    announce(state, "shop", "bank")  # and where it once had a wider certificate
    assert found(state, narrow, "bank", 1) == []
    with pytest.raises(PermissionDeniedError, match="does not admit domain bank"):
        base = BaseDescriptor(9, ("shop",), "bank", "f", PAGES)
        handlers.publish_base(PublishBase(base, K, hashes(9, PAGES), positions(PAGES)), state, narrow)
    assert found(state, narrow, "shop", 2) == [2]


def test_a_node_sees_the_nodes_that_it_may_read_from(state: ControllerState) -> None:
    def seen(party: Party | None) -> set[str]:
        return {r.endpoints.node_id for r in handlers.list_nodes(state, 0.0, party)}

    assert seen(node("bank")) == {"bank"}
    assert seen(Party(Role.OBSERVER, "top")) == seen(None) == {"bank", "shop"}
    announce(state, "shop", "bank")
    assert seen(node("shop")) == {"bank", "shop"}
    assert seen(node("shop", "shop")) == {"shop"}
