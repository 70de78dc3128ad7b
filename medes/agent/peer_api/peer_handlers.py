"""What other agents ask of this one: pins on its bases and access to its page server; plain functions.

Tokens of the page server are in medes.agent.peer_api.page_tokens.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from medes import native
from medes.agent.agent import Agent
from medes.agent.bases.bases import LocalBase
from medes.agent.journal import records
from medes.agent.journal.store_identity import same_store
from medes.agent.ops.base_op import free_base
from medes.agent.peer_api.page_tokens import SECRET_BYTES, PageTokens, Token
from medes.agent.peer_client import PageAccess
from medes.errors import (
    AlreadyExistsError,
    BusyError,
    InvalidArgumentError,
    LimitExceededError,
    MedesError,
    NotFoundError,
)
from medes.limits import (
    BASES_PER_NODE_MAX,
    NAME_CHARS_MAX,
    NODES_MAX,
    OFFER_BYTES_MAX,
    SANDBOXES_PER_NODE_MAX,
    TRANSPORTS_PER_NODE_MAX,
)
from medes.transport.transport import Transport
from medes.types import BaseDescriptor

log = logging.getLogger(__name__)

PAGE_ACCESS_MAX = NODES_MAX * 16


def require_domain(agent: Agent, node_id: str, domain: str, base_ids: list[int]) -> None:
    """Raises not_found, as for a base that does not exist, when that node may not read the domain here."""
    if not agent.domain_rights.may_read(node_id, domain):
        log.warning("%s asked for domain %s, which it may not read here", node_id, domain)
        name = f"base {base_ids[0]:016x}" if base_ids else f"domain {domain}"
        raise NotFoundError("this node has no such base", object=name)


def _require_all_bases(agent: Agent) -> None:
    """Raises busy while it is not known yet which bases this node has: a "no" would lose their users."""
    if not agent.bases.complete:
        raise BusyError("the agent is taking its bases back", object=agent.node_id, hint="try again")


def _check_names(*names: str) -> None:
    for name in names:
        if not name or len(name) > 2 * NAME_CHARS_MAX:
            raise InvalidArgumentError("node, holder and domain must be named", object=name[:50] or "(empty)")


def check_base_count(node_id: str, count: int) -> None:
    """Before anything is made of them: a node has no more bases than this."""
    if count > BASES_PER_NODE_MAX:
        raise LimitExceededError(f"{count} bases; at most {BASES_PER_NODE_MAX}", object=node_id[:50])


def check_domain_count(node_id: str, count: int) -> None:
    if count > PAGE_ACCESS_MAX:
        raise LimitExceededError(f"{count} domains; at most {PAGE_ACCESS_MAX}", object=node_id[:50])


def check_offers(node_id: str, offers: Mapping[str, bytes]) -> None:
    if len(offers) > TRANSPORTS_PER_NODE_MAX or any(len(o) > OFFER_BYTES_MAX for o in offers.values()):
        raise LimitExceededError(
            f"at most {TRANSPORTS_PER_NODE_MAX} offers of {OFFER_BYTES_MAX} bytes", object=node_id[:50]
        )


def check_pin_sets(node_id: str, pins: Sequence[Any]) -> None:
    """All the pins a node says that it has (with `base_ids` each): a holder is a sandbox or an op of it."""
    if len(pins) > SANDBOXES_PER_NODE_MAX:
        raise LimitExceededError(
            f"{len(pins)} holders; at most {SANDBOXES_PER_NODE_MAX}", object=node_id[:50]
        )
    for pin_set in pins:
        check_base_count(node_id, len(pin_set.base_ids))


# --- pins --------------------------------------------------------------------------------------------------
async def pin(
    agent: Agent, node_id: str, holder_id: str, domain: str, base_ids: list[int]
) -> list[BaseDescriptor]:
    """Grants all or none; a granted pin is on the disk before this returns. Raises not_found, invalid_argument."""
    _check_names(node_id, holder_id, domain)
    require_domain(agent, node_id, domain, base_ids)
    _require_all_bases(agent)
    already = agent.pins.held(node_id, holder_id)
    bases = agent.bases.grantable(domain, base_ids, already)
    # In memory first: while the journal is written nobody else may free one of these.
    agent.pins.pin(node_id, holder_id, domain, base_ids)
    try:
        await _journal_holder(agent, node_id, holder_id, domain)
    except MedesError:
        agent.pins.unpin(node_id, holder_id, set(base_ids) - already)
        raise
    agent.on_pinned(node_id, domain)
    return [b.descriptor for b in bases]


async def _journal_holder(
    agent: Agent, node_id: str, holder_id: str, domain: str, *, sync: bool = True
) -> None:
    held = sorted(agent.pins.held(node_id, holder_id))
    await agent.journal.write(records.pins(node_id, holder_id, domain, held), sync=sync)


async def unpin(agent: Agent, node_id: str, holder_id: str, base_ids: list[int]) -> None:
    """Takes pins back; unknown ones are no error (an unpin may be repeated)."""
    _check_names(node_id, holder_id)
    if node_id == agent.node_id:
        raise InvalidArgumentError("a node's own pins are not given back from outside", object=node_id)
    freed = agent.pins.unpin(node_id, holder_id, base_ids)
    await _journal_holder(agent, node_id, holder_id, "", sync=False)
    for base_id in freed:
        free_base(agent, base_id)


async def _require_caller(agent: Agent, node_id: str, store: str) -> None:
    """Raises already_exists when another store goes by that node's name, at the controller or as far as is known here: a
    second agent of a name (a clone knows its original's peers) must not give up what the first one has pinned."""
    resolved = await agent.controller.resolve(node_id)
    for known in (resolved, agent.peers.endpoints.get(node_id)):
        if known is None or not known.store:
            continue
        if known.store != store:
            if agent.peers.is_news(node_id, store):
                # The same store elsewhere is a machine that was started anew and has not joined yet, or a clone.
                level = logging.WARNING if same_store(known.store, store) else logging.ERROR
                log.log(
                    level,
                    "another agent than the one at %s calls itself node %s",
                    known.grpc_address,
                    node_id,
                )
            raise AlreadyExistsError(
                "another agent has this name, or this one has not joined yet", object=f"node {node_id}"
            )
        return


async def reconcile(
    agent: Agent, node_id: str, pins: Mapping[str, tuple[str, list[int]]], store: str = ""
) -> list[int]:
    """Makes `pins` (holder → domain, base ids) all that node pins here; returns the ids this node does not have.

    `store`: the caller's (see store_identity). Raises already_exists when that node's is another.
    """
    _check_names(node_id)
    if node_id == agent.node_id:
        raise InvalidArgumentError("a node does not reconcile with itself", object=node_id)
    await _require_caller(agent, node_id, store)
    _require_all_bases(agent)
    wanted = {b for _, base_ids in pins.values() for b in base_ids}
    if wanted & agent.bases.waiting:
        raise BusyError("a base cannot be opened now", object=agent.node_id, hint="try again")
    missing: list[int] = []
    kept: dict[str, tuple[str, list[int]]] = {}
    for holder_id, (domain, base_ids) in pins.items():
        _check_names(holder_id, domain)
        may_read = agent.domain_rights.may_read(node_id, domain)
        known = [b for b in base_ids if may_read and _has(agent, b, domain)]
        missing += set(base_ids).difference(known)
        kept[holder_id] = (domain, known)
    freed, gone = agent.pins.replace_node(node_id, kept)
    written = [records.unpinned(node_id, h) for h in gone]
    written += [records.pins(node_id, h, d, ids) for h, (d, ids) in kept.items()]
    if written:
        await agent.journal.write(*written, sync=True)
    for domain in {domain for domain, known in kept.values() if known}:
        agent.on_pinned(node_id, domain)
    for base_id in freed:
        free_base(agent, base_id)
    return missing


def _has(agent: Agent, base_id: int, domain: str) -> bool:
    base = agent.bases.bases.get(base_id)
    return base is not None and base.descriptor.domain == domain


# --- pages -------------------------------------------------------------------------------------------------
class PageAccessTable:
    """Tokens of the page server and access by other transports, one a (node, domain). Use from one event loop.

    Access is a lease: a node that is silent for `page_lease_s` loses that by other transports, and its tokens for domains
    in which it has no pins here. All of it ends with the token's epoch besides, and nodes ask for new ones.
    """

    def __init__(
        self, agent: Agent, server: native.PageServer, advertised: str, transports: Sequence[Transport] = ()
    ) -> None:
        self._agent = agent
        self._transports = {t.name: t for t in transports}
        self._server = server
        self.address = advertised
        self.tokens = PageTokens(b"", agent.settings.page_token_s, agent.clock.wall_s)
        self._heard_s: dict[
            tuple[str, str], float
        ] = {}  # (node, domain) with a token → when it was last heard of

    async def start(self) -> None:
        """Serves the bases that are added from now on."""
        await self._load_secret()
        # A reader that was open before this agent restarted holds the same token: with a pin it works again.
        self._agent.on_pinned = self._grant
        self._agent.silent_s = self.silent_s
        self._agent.page_server_bytes = lambda: self.stats()["bytes"]
        self._agent.bases.on_added = self._added
        self._agent.bases.on_removed = self._removed

    def grant_again(self) -> None:
        """After recovery: the tokens that peers with pins here were granted before."""
        for node_id, domain in self._agent.pins.peer_domains(self._agent.node_id):
            if self._agent.domain_rights.may_read(node_id, domain):
                self._grant(node_id, domain)

    async def _load_secret(self) -> None:
        known = self._agent.journal.state.node.get("secret", "")
        if len(known) != 2 * SECRET_BYTES:
            known = secrets.token_hex(SECRET_BYTES)  # not of a Chance: nobody may guess it
            try:
                await self._agent.journal.write(records.node(secret=known), sync=True)
            except MedesError as error:  # readers open anew after the next restart
                log.warning("the secret of page tokens is not kept: %s", error)
        self.tokens = PageTokens(
            bytes.fromhex(known), self._agent.settings.page_token_s, self._agent.clock.wall_s
        )

    def _added(self, base: LocalBase) -> None:
        self._server.add_slab(base.slab, base.descriptor.domain)
        for transport in self._transports.values():
            transport.publish(base.slab, base.descriptor.domain)

    def _removed(self, base: LocalBase) -> None:
        for transport in self._transports.values():
            transport.withdraw(base.base_id)
        self._server.remove_slab(base.base_id)

    def news(self, node_id: str, domain: str, base_ids: list[int]) -> dict[str, bytes]:
        """What transports tell a peer of the bases on which it was just granted pins."""
        told = {name: t.news(node_id, domain, base_ids) for name, t in self._transports.items()}
        return {name: news for name, news in told.items() if news}

    def _grant(self, node_id: str, domain: str) -> Token:
        good = self.tokens.good(node_id, domain)
        for token in good:
            self._server.grant(token.token, domain, node_id, token.valid_s)
        self._heard_s[node_id, domain] = self._agent.clock.now_s()
        return good[0]

    def open(self, node_id: str, domain: str, offers: Mapping[str, bytes] | None = None) -> PageAccess:
        """Access for a node to the pages of a domain; by other transports as well where it made offers and we can.

        Raises not_found where that node may not read the domain, limit_exceeded, and invalid_argument for an offer that is
        none.
        """
        _check_names(node_id, domain)
        require_domain(self._agent, node_id, domain, [])
        if (node_id, domain) not in self._heard_s and len(self._heard_s) >= PAGE_ACCESS_MAX:
            raise LimitExceededError("too many nodes and domains with page access", object=node_id)
        token = self._grant(node_id, domain)
        answers: dict[str, bytes] = {}
        for name, transport in self._transports.items():
            if (offer := (offers or {}).get(name)) is not None:
                answer = transport.accept(node_id, domain, offer, self._agent.clock.now_s(), token.valid_s)
                if answer is not None:
                    answers[name] = answer
        return PageAccess(token.token, self.address, answers, valid_s=token.valid_s)

    def keep(self, node_id: str, domains: list[str], in_use: Mapping[str, Iterable[str]]) -> None:
        """That node still uses its access to these domains, and by transport those `in_use`; what it was never given stays
        so."""
        _check_names(node_id)
        now_s = self._agent.clock.now_s()
        for domain in domains:
            if (node_id, domain) in self._heard_s:
                self._heard_s[node_id, domain] = now_s
        for name, transport in self._transports.items():
            transport.keep(node_id, in_use.get(name, ()), now_s)

    def silent_s(self, node_id: str) -> float | None:
        """How long ago that node was heard of, as far as access goes that it has; None without any."""
        heard = [heard_s for (node, _), heard_s in self._heard_s.items() if node == node_id]
        return self._agent.clock.now_s() - max(heard) if heard else None

    def reap(self) -> None:
        """Takes back what nodes that have gone, or read no more, were given."""
        now_s = self._agent.clock.now_s()
        since_s = now_s - self._agent.settings.page_lease_s
        for transport in self._transports.values():
            transport.reap(since_s, now_s)
        silent = {key for key, heard_s in self._heard_s.items() if heard_s < since_s}
        for key in silent - set(self._agent.pins.peer_domains(self._agent.node_id)):
            del self._heard_s[key]
            for token in self.tokens.good(*key):
                self._server.revoke(token.token)
            for transport in self._transports.values():
                transport.release(*key)

    def end_connections(self) -> None:
        """Who is believed has changed: whoever still is connects anew, behind the requests that have come."""
        self._server.end_connections()

    def stats(self) -> dict[str, int]:
        return dict(self._server.stats())

    def transport_stats(self, name: str) -> dict[str, int]:
        """Empty where this node does not run it."""
        transport = self._transports.get(name)
        return {} if transport is None else transport.stats()

    def close(self) -> None:
        for transport in self._transports.values():
            transport.close()
        self._server.close()
