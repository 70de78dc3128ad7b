"""The other agents: pins this node holds there, and readers of their base pages (one a peer and domain).

Unpins that a peer did not hear (it was down) wait in `_owed` and are tried again; after a restart of this agent
ReconcilePins says the same more briefly, so they need not survive it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import Protocol

from medes import native
from medes.agent.node.workers import Workers
from medes.agent.peer_client import PageAccess, PeerClient
from medes.agent.peers.page_renewal import PageRenewal
from medes.errors import DeadlineExceededError, MedesError, PeerUnreachableError, UnsupportedError
from medes.transport.choice import Transports
from medes.transport.transport import Transport
from medes.types import BaseDescriptor, NodeEndpoints

log = logging.getLogger(__name__)

TRIAL_BYTES = 16
TRIAL_TIMEOUT_S = 2.0
STRANGERS_MAX = 1000
AWAY = (PeerUnreachableError, DeadlineExceededError)


class ReaderFactory(Protocol):
    """Makes the reader of a peer's pages by the transport that settings and devices allow; blocks."""

    def __call__(self, peer: NodeEndpoints, access: PageAccess, wake: int) -> native.PageReader:
        """`wake`: an eventfd to be told when the token is refused."""
        ...


class PeerTable:
    """Use from one event loop; native calls go to `workers`."""

    def __init__(
        self,
        own_node: str,
        make_client: Callable[[str, str], PeerClient],
        make_reader: ReaderFactory,
        resolve: Callable[[str], Awaitable[NodeEndpoints | None]],
        workers: Workers,
        transports: Transports | None = None,
        *,
        own_only: bool = False,
    ) -> None:
        """`own_only`: no page of another node is read."""
        self._own_node = own_node
        self._make_client = make_client
        self._make_reader = make_reader
        self._resolve = resolve
        self._workers = workers
        self._transports = transports or Transports()
        self._own_only = own_only
        self.endpoints: dict[str, NodeEndpoints] = {}
        self._clients: dict[str, PeerClient] = {}
        self._readers: dict[tuple[str, str], tuple[native.PageReader, PageAccess]] = {}
        self._over_tcp: dict[tuple[str, str], native.PageReader] = {}  # the same with nothing before them
        self._opening: dict[tuple[str, str], asyncio.Lock] = {}
        self.renewal = PageRenewal(
            self._renew, lambda: {key: r for key, (r, _) in self._readers.items()}, workers.renewal
        )
        self._pinning: dict[str, asyncio.Lock] = {}
        self._owed: dict[tuple[str, str], set[int]] = {}  # (node, holder) → base ids still to unpin
        # (node, base id) → its bytes there and how many pin it, as its holder last said
        self.base_uses: dict[tuple[str, int], tuple[int, int]] = {}
        self.own_store: Callable[[], str] = lambda: ""  # of NodeEndpoints
        self._strangers: set[tuple[str, str]] = set()
        self.on_endpoints: Callable[[NodeEndpoints], None] = lambda endpoints: None
        # Told of a node that did not answer when it was asked for pins or told that its pages are read.
        self.on_away: Callable[[str], None] = lambda node_id: None

    def learn(self, endpoints: NodeEndpoints) -> None:
        """Remembers where a peer is; a peer that moved gets a new channel."""
        known = self.endpoints.get(endpoints.node_id)
        if endpoints.node_id == self._own_node or known == endpoints:
            return
        self.endpoints[endpoints.node_id] = endpoints
        self.on_endpoints(endpoints)
        if known is not None and known.grpc_address != endpoints.grpc_address:
            client = self._clients.pop(endpoints.node_id, None)
            if client is not None:
                asyncio.get_running_loop().create_task(client.close())

    def _client(self, node_id: str) -> PeerClient:
        if node_id not in self._clients:
            endpoints = self.endpoints.get(node_id)
            if endpoints is None or not endpoints.grpc_address:
                raise PeerUnreachableError("no address of this node is known", object=node_id)
            client = self._clients[node_id] = self._make_client(node_id, endpoints.grpc_address)
            client.on_uses = partial(self._uses_told, node_id)
            client.on_news = partial(self._learn, node_id)
        return self._clients[node_id]

    def _learn(self, node_id: str, domain: str, news: Mapping[str, bytes]) -> None:
        for transport in self._transports.running:
            if told := news.get(transport.name):
                transport.learn(node_id, domain, told)

    def _uses_told(self, node_id: str, uses: Mapping[int, tuple[int, int]], whole: bool) -> None:
        if whole:
            for key in [key for key in self.base_uses if key[0] == node_id and key[1] not in uses]:
                del self.base_uses[key]
        self.base_uses.update({(node_id, base_id): use for base_id, use in uses.items()})

    def is_news(self, node_id: str, store: str) -> bool:
        """True once for each agent that goes by another's name: it asks again and again."""
        if len(self._strangers) >= STRANGERS_MAX:
            self._strangers.clear()
        news = (node_id, store) not in self._strangers
        self._strangers.add((node_id, store))
        return news

    # --- pins ----------------------------------------------------------------------------------------------
    async def pin(
        self, node_id: str, holder: str, domain: str, base_ids: Iterable[int]
    ) -> list[BaseDescriptor]:
        """Raises peer_unreachable, not_found. After an error the pin may or may not be there: unpin it."""
        async with self._pinning.setdefault(node_id, asyncio.Lock()):
            try:
                return await self._client(node_id).pin(holder, domain, base_ids)
            except AWAY:
                self.on_away(node_id)
                raise

    async def unpin(self, node_id: str, holder: str, base_ids: Iterable[int]) -> None:
        """Never raises: what the peer did not hear is owed and sent again by `pay_owed`."""
        ids = set(base_ids)
        if not ids:
            return
        try:
            await self._client(node_id).unpin(holder, ids)
        except MedesError as error:
            log.info("unpin at %s: %s: will try again", node_id, error)
            self._owed.setdefault((node_id, holder), set()).update(ids)

    @property
    def owes(self) -> bool:
        """Whether a peer has not heard of an unpin."""
        return bool(self._owed)

    async def pay_owed(self) -> None:
        """Sends unpins that failed before."""
        owed, self._owed = self._owed, {}
        for (node_id, holder), ids in owed.items():
            await self.unpin(node_id, holder, ids)

    async def reconcile(
        self, node_id: str, pins: Callable[[], Mapping[str, tuple[str, Iterable[int]]]]
    ) -> set[int]:
        """Tells the peer all the pins this node holds there; returns the bases it no longer has. Raises.

        `pins` is asked when no pin is on its way to that peer, since it replaces what the peer knows.
        """
        async with self._pinning.setdefault(node_id, asyncio.Lock()):
            missing, store = await self._client(node_id).reconcile(pins(), self.own_store())
        if missing:
            await self._require_store(node_id, store)
        self._owed = {key: ids for key, ids in self._owed.items() if key[0] != node_id}
        return missing

    async def _require_store(self, node_id: str, store: str) -> None:
        """Raises peer_unreachable when the answer comes from another agent than the one that goes by that name, here or at
        the controller: what that one lacks is no loss."""
        for last in (False, True):
            known = self.endpoints.get(node_id)
            if known is not None and known.store and known.store == store:
                return
            if not last:
                # A peer whose machine was started anew has its store in another place: the controller knows.
                await self.refresh(node_id)
        log.error("another agent answers for node %s: is there a second one of that name?", node_id)
        raise PeerUnreachableError(
            "another agent answers for this node", object=node_id, hint="give each agent a node_id of its own"
        )

    # --- pages ---------------------------------------------------------------------------------------------
    async def fingerprints(self, base: BaseDescriptor, samples_per_page: int) -> tuple[bytes, bytes]:
        """Hashes and positions of all pages of a peer's base. Raises peer_unreachable, not_found, busy, corrupt."""
        return await self._client(base.nearest(self._own_node)).fingerprints(base, samples_per_page)

    async def reader(self, node_id: str, domain: str) -> native.PageReader:
        """The reader of a peer's pages, opened on first use. Raises peer_unreachable, unauthenticated."""
        if self._own_only:
            # Transient to those who need these pages: they wait as for a peer that is away, nothing is lost.
            raise PeerUnreachableError(
                "the transport is local: pages of other nodes are not read",
                object=node_id,
                hint="set transport to auto or tcp",
            )
        key = (node_id, domain)
        async with self._opening.setdefault(key, asyncio.Lock()):
            if key not in self._readers:
                access = await self._open(key)
                reader = await self._workers.restores(
                    self._make_reader, self.endpoints[node_id], access, self.renewal.wake
                )
                try:
                    combined = await self._with_transports(node_id, domain, reader)
                except BaseException:
                    reader.close()
                    raise
                self._over_tcp[key], self._readers[key] = reader, (combined, access)
                self.renewal.granted(key, access.valid_s)
            return self._readers[key][0]

    async def _open(self, key: tuple[str, str]) -> PageAccess:
        node_id, domain = key
        access = await self._client(node_id).open_pages(domain)
        if access.store and access.store != self.endpoints[node_id].store:
            await self._require_store(node_id, access.store)
        return access

    async def _renew(self, key: tuple[str, str]) -> tuple[float, bool]:
        """See PageRenewal."""
        access = await self._open(key)
        found = self._readers.get(key)
        if found is None:
            return access.valid_s, False
        reader, before = found
        reader.readdress(access.page_address, access.token)
        self._readers[key] = (reader, access)
        return access.valid_s, access.token != before.token

    async def _reopen(self, key: tuple[str, str]) -> native.PageReader:
        """A reader with what the peer grants now, and a queue pair of its own: one to a peer that has ended fails its reads
        only after many a retry. Those who use the one before go on with it, over TCP."""
        await self._renew(key)
        async with self._opening[key]:
            reader = await self._with_transports(*key, self._over_tcp[key])
            self._readers[key] = (reader, self._readers[key][1])
        return reader

    async def live_reader(self, node_id: str, domain: str, base_id: int) -> native.PageReader:
        """A reader that has just read from the base: one from before a restart of the peer is told what that grants now,
        and a peer that moved is asked for at the controller. Raises peer_unreachable, unauthenticated."""
        for last in (False, True):
            try:
                reader = await self.reader(node_id, domain)
                if last:
                    reader = await self._reopen((node_id, domain))
            except PeerUnreachableError:
                if last:
                    raise
                await self.refresh(node_id)
                continue
            if await self.readable(node_id, domain, base_id):
                return reader
        raise PeerUnreachableError("its base pages cannot be read", object=node_id)

    async def _with_transports(
        self, node_id: str, domain: str, reader: native.PageReader
    ) -> native.PageReader:
        """The reader with the first transport before it that both nodes have. Raises unsupported without the one that is
        required."""
        offered = self.endpoints[node_id].transports
        for transport in self._transports.running:
            if transport.name in offered:
                exchange = partial(self._exchange, (node_id, domain), transport, reader)
                attached = await transport.attach(node_id, domain, reader, exchange)
                if attached is not None:
                    return attached
        if required := self._transports.required:
            raise UnsupportedError(
                f"this peer cannot be read by {required}", object=node_id, hint="set transport to auto or tcp"
            )
        return reader

    async def _exchange(
        self, key: tuple[str, str], transport: Transport, reader: native.PageReader, offer: bytes
    ) -> bytes | None:
        access = await self._client(key[0]).open_pages(key[1], {transport.name: offer})
        # A peer that was started anew may have moved and granted a new token.
        reader.readdress(access.page_address, access.token)
        if key in self._readers:
            self._readers[key] = (self._readers[key][0], access)
        self.renewal.granted(key, access.valid_s)
        return access.answers.get(transport.name)

    async def keep_pages(self) -> None:
        """Tells every peer what is read there, so that it goes on granting it. Never raises."""

        async def tell(node_id: str, domains: list[str]) -> None:
            try:
                in_use = {t.name: t.in_use(node_id) for t in self._transports.running}
                await self._client(node_id).keep_pages(domains, in_use)
            except MedesError as error:
                log.info("%s was not told that its pages are in use: %s", node_id, error)
                if isinstance(error, AWAY):
                    self.on_away(node_id)

        used: dict[str, list[str]] = {}
        for node_id, domain in self._readers:
            used.setdefault(node_id, []).append(domain)
        await asyncio.gather(*(tell(node_id, domains) for node_id, domains in used.items()))

    def forget_bases(self, pinned_at: Callable[[str], Iterable[int]]) -> None:
        """Lets transports forget peers' bases that this node pins no more; `pinned_at` a node, dedup ops included."""
        for transport in self._transports.running:
            for node_id in {node_id for node_id, _ in self._readers}:
                transport.keep_bases(node_id, pinned_at(node_id))

    async def readable(self, node_id: str, domain: str, base_id: int) -> bool:
        """Whether the reader in use still reads the base (the peer may have restarted)."""
        key = (node_id, domain)
        found = self._readers.get(key)
        if found is None:
            return False
        reader = found[0]
        try:
            await self._workers.restores(lambda: reader.read(base_id, 0, TRIAL_BYTES, TRIAL_TIMEOUT_S))
            return True
        except MedesError as error:
            log.info("pages of %s: %s: opening them anew", node_id, error)
            return False

    async def refresh(self, node_id: str) -> None:
        """Asks where the peer is now, if the controller can be asked."""
        endpoints = await self._resolve(node_id)
        if endpoints is not None:
            self.learn(endpoints)

    def fallback_reads(self) -> int:
        """Reads of the open readers that went over TCP because the transport before it could not do them; may be called anywhere."""
        return sum(reader.stats()["fallbacks"] for reader, _ in list(self._readers.values()))

    async def close(self) -> None:
        """Closes readers and channels. Idempotent."""
        readers, self._readers = self._readers, {}
        for reader, _ in readers.values():
            await self._workers.restores(reader.close)
        await self.renewal.close()
        clients, self._clients = self._clients, {}
        for client in clients.values():
            await client.close()
