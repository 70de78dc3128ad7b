"""What the controller answers: functions of request, state and time (seconds of a monotonic clock).

No protobuf, no clock, no event loop in here. Those that touch the store may block.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from medes.certs.parties import Party, Role
from medes.controller import checks
from medes.controller.api.requests import (
    Advice,
    AdviseBase,
    AnnounceSandboxes,
    Heartbeat,
    HeartbeatAnswer,
    Joined,
    JoinNode,
    ListSandboxes,
    Lookup,
    LookupFingerprints,
    PublishBase,
    RetireBase,
)
from medes.controller.members.expiry import forget_node
from medes.controller.placement.advisor import FIRST_BASE
from medes.controller.registry.store import nothing_found
from medes.controller.state import ControllerState
from medes.errors import InvalidArgumentError, LimitExceededError, MedesError
from medes.limits import FUNCTION_ROWS_MAX
from medes.rpc.address import is_remote, local_addresses
from medes.types import BaseDescriptor, NodeEndpoints, NodeRecord, NodeUsage, SandboxRecord

log = logging.getLogger(__name__)


def join_node(request: JoinNode, state: ControllerState, now_s: float, caller: str = "") -> Joined:
    """A node comes or comes back. After its restart, what was known of it goes; it announces all again.

    `caller`: the address it calls from (gRPC's form), empty where that is not known. Raises already_exists when another
    agent has its name, invalid_argument for addresses under which other nodes cannot reach it, limit_exceeded.
    """
    checks.endpoints(request.endpoints)
    checks.name(request.incarnation, "incarnation")
    node_id = request.endpoints.node_id
    with state.node_changes:
        try:
            _refuse_unreachable(request.endpoints, caller, state, now_s)
            fresh = state.membership.join(request.endpoints, request.incarnation, request.memory_bytes, now_s)
        except MedesError as error:
            if state.refusals.is_news(node_id, request.incarnation, now_s):
                log.error("a node was refused: %s", error)
            raise
        if fresh:
            forget_node(node_id, state)
            retired = state.store.retire_node(node_id)
            log.info("node joined", extra={"node": node_id, "bases_retired": retired})
        state.store.take(node_id, 2 * state.settings.lease_ms / 1000)
    return Joined(
        samples_per_page=state.settings.samples_per_page,
        heartbeat_interval_ms=state.settings.heartbeat_interval_ms,
        lease_ms=state.settings.lease_ms,
        controller_incarnation=state.incarnation,
    )


def _refuse_unreachable(endpoints: NodeEndpoints, caller: str, state: ControllerState, now_s: float) -> None:
    """A node on another machine, or among nodes of others, must not give an address that means "this machine"."""
    if state.settings.local_nodes:
        return
    local = local_addresses(endpoints)
    others = [
        r.endpoints
        for r in state.membership.records(now_s)
        if r.alive and r.endpoints.node_id != endpoints.node_id
    ]
    if local and (is_remote(caller) or any(o.grpc_address and not local_addresses(o) for o in others)):
        raise InvalidArgumentError(
            f"other nodes cannot reach {' and '.join(local)}",
            object=f"node {endpoints.node_id}",
            hint="set peer_advertise and page_advertise_host to addresses of this machine",
        )
    if not local and endpoints.grpc_address:
        for other in filter(local_addresses, others):
            if state.refusals.is_news(other.node_id, endpoints.node_id, now_s):
                log.error(
                    "node %s advertises %s, which node %s cannot reach",
                    *(other.node_id, " and ".join(local_addresses(other)), endpoints.node_id),
                )


def heartbeat(request: Heartbeat, state: ControllerState, now_s: float) -> HeartbeatAnswer:
    """Renews a lease, or says that the node must join (and announce) again."""
    functions = request.functions.functions if request.functions is not None else None
    if functions is not None and len(functions) > FUNCTION_ROWS_MAX:
        raise LimitExceededError(f"{len(functions)} rows of functions", object=request.node_id)
    known = state.membership.heartbeat(request.node_id, request.incarnation, request.usage, now_s, functions)
    return HeartbeatAnswer(controller_incarnation=state.incarnation, join_again=not known)


def leave_node(node_id: str, state: ControllerState, incarnation: str = "") -> None:
    """A node goes in peace. Leaving twice is harmless, and another agent of that name is not heard."""
    checks.name(node_id, "node_id")
    with state.node_changes:
        if state.membership.leave(node_id, incarnation):
            forget_node(node_id, state)
            retired = state.store.retire_node(node_id)
            log.info("node left", extra={"node": node_id, "bases_retired": retired})


def list_nodes(state: ControllerState, now_s: float, party: Party | None = None) -> list[NodeRecord]:
    """All of them; to a node (`party`) only where those are that it may read from, and not what they hold."""
    records = state.membership.records(now_s)
    if party is None or party.role is not Role.NODE:
        return records
    hosted = {d for d in state.directory.domains_of(party.name) if party.admits(d)}
    near = {h for b in state.store.bases() if b.domain in hosted for h in b.holders}
    near |= state.directory.nodes_in(hosted) | {party.name}
    return [replace(r, usage=NodeUsage()) for r in records if r.endpoints.node_id in near]


def lookup_fingerprints(
    request: LookupFingerprints,
    state: ControllerState,
    clock: Callable[[], float],
    party: Party | None = None,
) -> Lookup:
    """The base locations of a whole image, and where their holders listen. Needs no membership: it is a hint."""
    checks.name(request.domain, "domain")
    checks.samples(request.samples_per_page, state.settings.samples_per_page)
    pages = checks.hashes(request.hashes, request.samples_per_page)
    if not state.domain_access.hears(party, request.domain):
        return Lookup(*_nothing(pages * request.samples_per_page), ())
    start_s = clock()
    found = state.store.lookup(request.domain, request.hashes, request.samples_per_page)
    state.count_lookup(pages, clock() - start_s)
    holders = state.membership.endpoints({h for b in found.bases for h in b.holders})
    return Lookup(found.locations, found.bases, holders)


def _nothing(samples: int) -> tuple[bytes, tuple[BaseDescriptor, ...]]:
    found = nothing_found(samples)
    return found.locations, found.bases


def publish_base(request: PublishBase, state: ControllerState, party: Party | None = None) -> None:
    """A live node offers a base. Repeating it is harmless."""
    state.domain_access.require(party, request.base.domain)
    checks.samples(request.samples_per_page, state.settings.samples_per_page)
    pages = checks.hashes(request.hashes, request.samples_per_page)
    checks.base(request.base, pages, request.positions, request.samples_per_page)
    node_id = request.base.holders[0]
    state.membership.require(node_id)
    state.store.publish(request.base, request.hashes, request.positions, request.samples_per_page)
    state.advisor.published(request.base.function, request.base.domain, node_id)
    try:
        state.membership.require(node_id)
    except Exception:
        # It died while we inserted, after its bases had been retired: nobody else would take this one out.
        state.store.retire(request.base.base_id, node_id)
        raise


def retire_base(request: RetireBase, state: ControllerState) -> None:
    """A node takes a base back. Retiring what is not there is harmless."""
    checks.name(request.node_id, "node_id")
    state.store.retire(request.base_id, request.node_id)


def advise_base(
    request: AdviseBase, state: ControllerState, now_s: float, party: Party | None = None
) -> Advice:
    """Should this sandbox become a base? A yes is a reservation: others of the function hear no meanwhile."""
    for what in ("node_id", "function", "domain", "sandbox_id"):
        checks.name(getattr(request, what), what)
    state.membership.require(request.node_id)
    if not state.domain_access.hears(party, request.domain):
        return Advice(True, FIRST_BASE)  # what it would hear of an empty domain; nothing is reserved
    make, reason = state.advisor.advise(
        request.function,
        request.domain,
        request.node_id,
        request.sandbox_id,
        base_count=state.store.base_count(request.function, request.domain),
        dedup_count=state.directory.dedup_count(request.function, request.domain),
        now_s=now_s,
    )
    return Advice(make, reason)


def announce_sandboxes(
    request: AnnounceSandboxes, state: ControllerState, party: Party | None = None
) -> None:
    """A live node's sandboxes: all of them (full) or those that changed."""
    checks.name(request.node_id, "node_id")
    checks.sandboxes(request.sandboxes, request.node_id)
    state.membership.require(request.node_id)
    sandboxes = state.domain_access.admitted(party, request.sandboxes)
    records = tuple(replace(r, node_id=request.node_id) for r in sandboxes)
    state.directory.announce(request.node_id, records, full=request.full)


def list_sandboxes(request: ListSandboxes, state: ControllerState) -> list[SandboxRecord]:
    return state.directory.list(request.function, request.node_id)
