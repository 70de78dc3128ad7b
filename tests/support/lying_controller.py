"""`medes controller` that lies, with its genuine certificate. Run as a script.

    python -m tests.support.lying_controller LIE medes-controller-options…

It knows all bases of all domains, as a controller that was taken over does.
"""

from __future__ import annotations

import random
import struct
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from medes.certs.parties import Party
from medes.cli.main import main
from medes.controller.api import handlers
from medes.controller.api.requests import Advice, HeartbeatAnswer, Lookup, LookupFingerprints
from medes.controller.placement.advisor import FIRST_BASE
from medes.controller.state import ControllerState
from medes.types import BaseDescriptor, NodeRecord

LOCATIONS = 2  # of a hash
SECRET_DOMAIN = "bank"
truth = handlers.lookup_fingerprints


def _located(ask: LookupFingerprints, pages: int, *, seed: int = 1, slots: int = 1) -> bytes:
    """A location for every hash, at random in so many pages of each base."""
    source = random.Random(seed)
    samples = len(ask.hashes) // 8
    packed = (
        source.randrange(slots) << 48 | source.randrange(pages) << 16 | source.randrange(253) << 8
        for _ in range(samples * LOCATIONS)
    )
    return struct.pack(f"<{samples * LOCATIONS}Q", *packed)


def _told(
    ask: LookupFingerprints, state: ControllerState, bases: list[BaseDescriptor], **more: int
) -> Lookup:
    holders = state.membership.endpoints({h for b in bases for h in b.holders})
    pages = more.pop("pages", max((b.page_count for b in bases), default=1))
    return Lookup(_located(ask, pages, slots=max(1, len(bases)), **more), tuple(bases), holders)


def _of(state: ControllerState, domain: str) -> list[BaseDescriptor]:
    return [b for b in state.store.bases() if b.domain == domain]


# --- look-ups --------------------------------------------------------------------------------------------------
def unknown_bases(ask: LookupFingerprints, state: ControllerState) -> Lookup:
    """Bases that nobody has, said to be at a node that is there."""
    bases = [replace(b, base_id=b.base_id ^ 0xDEAD) for b in _of(state, ask.domain)]
    return _told(ask, state, bases)


def other_domains(ask: LookupFingerprints, state: ControllerState) -> Lookup:
    """Another tenant's bases, as if they were of the domain that is asked for."""
    return _told(ask, state, [replace(b, domain=ask.domain) for b in _of(state, SECRET_DOMAIN)])


def contents(ask: LookupFingerprints, state: ControllerState) -> Lookup:
    """Bases that are there, and in which nothing is where it is said to be."""
    return _told(ask, state, _of(state, ask.domain))


def beyond(ask: LookupFingerprints, state: ControllerState) -> Lookup:
    """Pages that are beyond the end of a base, whose size is a lie as well."""
    bases = [replace(b, page_count=(1 << 32) - 1) for b in _of(state, ask.domain)]
    return _told(ask, state, bases, pages=1 << 32)


def short(ask: LookupFingerprints, state: ControllerState) -> Lookup:
    """An answer that is cut off."""
    found = _told(ask, state, _of(state, ask.domain))
    return replace(found, locations=found.locations[: len(found.locations) // 2 + 3])


def slots(ask: LookupFingerprints, state: ControllerState) -> Lookup:
    """Locations in bases that the answer does not name."""
    bases = _of(state, ask.domain)
    return Lookup(_located(ask, 100, slots=0xFFFF), tuple(bases), truth(ask, state, lambda: 0.0).holders)


def addresses(ask: LookupFingerprints, state: ControllerState) -> Lookup:
    """The truth, but where the holder is: at another node."""
    found = truth(ask, state, lambda: 0.0)
    elsewhere = state.membership.endpoints({ask.node_id})
    return replace(
        found,
        holders=tuple(
            replace(h, grpc_address=e.grpc_address, page_address=e.page_address)
            for h in found.holders
            for e in elsewhere
        ),
    )


def swapped(ask: LookupFingerprints, state: ControllerState) -> Lookup:
    """The truth, but who the holder is: the asking node itself, or one that nobody knows."""
    found = truth(ask, state, lambda: 0.0)
    return replace(found, bases=tuple(replace(b, holders=("nobody",)) for b in found.bases))


LOOKUPS: dict[str, Callable[[LookupFingerprints, ControllerState], Lookup]] = {
    f.__name__: f for f in (unknown_bases, other_domains, contents, beyond, short, slots, addresses, swapped)
}


# --- the rest --------------------------------------------------------------------------------------------------
def always_a_base(*_: Any) -> Advice:
    return Advice(True, FIRST_BASE)


def never_a_member(ask: Any, state: ControllerState, now_s: float) -> HeartbeatAnswer:
    return HeartbeatAnswer(controller_incarnation=str(random.random()), join_again=True)


def nobody_there(state: ControllerState, now_s: float, party: Party | None = None) -> list[NodeRecord]:
    return []


def other_stores(state: ControllerState, now_s: float, party: Party | None = None) -> list[NodeRecord]:
    """Every node is said to have lost its store: what it lacks is lost, if that were believed."""
    return [
        replace(r, endpoints=replace(r.endpoints, store="another", grpc_address="127.0.0.1:1"))
        for r in state.membership.records(now_s)
    ]


def tell(lie: str) -> None:
    """Replaces what the controller does by the lie."""
    if lie in LOOKUPS:

        def lookup(ask: LookupFingerprints, state: ControllerState, *_: Any) -> Lookup:
            return LOOKUPS[lie](ask, state)

        handlers.lookup_fingerprints = lookup  # type: ignore[assignment]
    elif lie == "advice":
        handlers.advise_base = always_a_base  # type: ignore[assignment]
    elif lie == "membership":
        handlers.heartbeat = never_a_member
        handlers.list_nodes = nobody_there
    elif lie == "stores":
        handlers.list_nodes = other_stores
    else:
        raise SystemExit(f"no such lie: {lie}")


LIES = (*LOOKUPS, "advice", "membership", "stores")

if __name__ == "__main__":
    tell(sys.argv[1])
    main(["controller", *sys.argv[2:]])
