"""RDMA on one node: what its agent serves, and the readers of its peers that it keeps connected.

Queue pairs are set up by an exchange of endpoints that the agent carries over its peer service. A reader whose
connection was lost or evicted reads over TCP until `run` has exchanged endpoints anew; nothing here is on the path
of a read. Use the async parts from one event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from medes import native
from medes.errors import BusyError, MedesError, UnsupportedError

log = logging.getLogger(__name__)

WANTED_WAIT_S = 1.0
IDLE_EVICT_S = 300.0  # a queue pair unused this long is closed
EVICT_EVERY_S = 30.0
RECONNECTS_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class RdmaAnswer:
    """What a peer answers to an endpoint: its own, None where it has no RDMA, and where its slabs are."""

    endpoint: native.RdmaEndpoint | None
    regions: tuple[native.RdmaRegion, ...] = ()


NO_RDMA = RdmaAnswer(None)
Exchange = Callable[[native.RdmaEndpoint], Awaitable[RdmaAnswer]]
LinkKey = tuple[str, str]  # (node, domain)


@dataclass(slots=True)
class _Link:
    key: LinkKey
    reader: native.RdmaReader
    exchange: Exchange


def open_rdma(transport: str, *, encrypted: bool) -> tuple[RdmaNode | None, str]:
    """This node's RDMA as the `transport` setting wants it, or None and why not. Blocks for some milliseconds.

    `auto` keeps to TCP where traffic between nodes is to be encrypted, which RDMA cannot do. Raises unsupported when
    `rdma` was asked for by name and cannot run.
    """
    if transport not in ("auto", "rdma"):
        return None, f"the transport is set to {transport}"
    if transport == "auto" and encrypted:
        return None, "TLS is set, and RDMA does not encrypt"
    try:
        node = RdmaNode(native.RdmaContext())
    except MedesError as error:
        if transport == "rdma":
            raise
        return None, str(error)
    if encrypted:
        log.warning("transport rdma by setting: page bytes cross the fabric unencrypted in spite of TLS")
    return node, ""


class RdmaNode:
    """One device: slabs served, queue pairs granted, readers kept connected."""

    def __init__(self, context: native.RdmaContext) -> None:
        self.context = context
        self._served: dict[int, str] = {}  # base id → domain
        self._accepted: dict[LinkKey, int] = {}
        self._links: dict[int, _Link] = {}
        # A thread of its own: it mostly sleeps in take_wanted.
        self._executor = ThreadPoolExecutor(2, "medes-rdma")

    # --- serving -------------------------------------------------------------------------------------------
    def publish(self, slab: native.Slab, domain: str) -> bool:
        """Registers a slab; blocks about as long as touching its pages. False: peers read it over TCP."""
        try:
            self.context.add_slab(slab, domain)
        except MedesError as error:
            log.warning("base %016x is served over TCP only: %s", slab.base_id, error)
            return False
        self._served[slab.base_id] = domain
        return True

    def retire(self, base_id: int) -> None:
        if self._served.pop(base_id, None) is not None:
            self.context.remove_slab(base_id)

    def regions(self, domain: str, base_ids: Iterable[int] | None = None) -> list[native.RdmaRegion]:
        """Keys of a domain's slabs (all, or those named). For authenticated peers of that domain only."""
        wanted = self._served if base_ids is None else base_ids
        found = (self.context.region(base_id, domain) for base_id in list(wanted))
        return [region for region in found if region is not None]

    def accept(self, node_id: str, domain: str, remote: native.RdmaEndpoint) -> RdmaAnswer:
        """A queue pair for that node and domain; the one it had is closed. No endpoint when the bound is reached."""
        key = (node_id, domain)
        previous = self._accepted.pop(key, None)
        if previous is not None:
            self.context.disconnect(previous)
        try:
            connection_id, endpoint = self.context.accept(remote, domain, node_id)
        except BusyError as error:
            log.warning("%s reads over TCP: %s", node_id, error)
            return NO_RDMA
        self._accepted[key] = connection_id
        return RdmaAnswer(endpoint, tuple(self.regions(domain)))

    def release(self, node_id: str, domain: str) -> None:
        """Closes the queue pair of that node and domain. Idempotent."""
        connection_id = self._accepted.pop((node_id, domain), None)
        if connection_id is not None:
            self.context.disconnect(connection_id)

    # --- reading -------------------------------------------------------------------------------------------
    async def attach(
        self, node_id: str, domain: str, second: native.PageReader, exchange: Exchange
    ) -> native.PageReader:
        """A reader that uses RDMA first and `second` for what that cannot do; `second` itself if the peer has none.

        Raises what the exchange raises.
        """
        link = _Link((node_id, domain), self.context.reader(), exchange)
        if not await self._connect(link):
            return second
        for reader_id in [i for i, old in self._links.items() if old.key == link.key]:
            del self._links[reader_id]
        self._links[link.reader.id] = link
        return native.fallback_reader(link.reader, second)

    def add_regions(self, node_id: str, domain: str, regions: Iterable[native.RdmaRegion]) -> None:
        """Bases that the peer published after the connection was made."""
        for link in self._links.values():
            if link.key == (node_id, domain):
                for region in regions:
                    link.reader.add_region(region)

    async def _connect(self, link: _Link) -> bool:
        loop = asyncio.get_running_loop()
        try:
            endpoint = await loop.run_in_executor(self._executor, link.reader.offer)
        except BusyError as error:
            log.warning("%s: %s", link.key[0], error)
            return False
        answer = await link.exchange(endpoint)
        if answer.endpoint is None:
            return False
        # A peer that was started anew has registered its slabs anew: what it says now replaces what was known.
        for region in answer.regions:
            link.reader.add_region(region)
        try:
            await loop.run_in_executor(self._executor, link.reader.connect, answer.endpoint)
        except UnsupportedError:
            raise
        except MedesError as error:
            log.warning("%s: RDMA connection failed, reading over TCP: %s", link.key[0], error)
            return False
        return True

    async def run(self) -> None:
        """Reconnects readers that were used without a connection and closes idle connections; ends when cancelled."""
        loop = asyncio.get_running_loop()
        evict_at = loop.time() + EVICT_EVERY_S
        turns = asyncio.Semaphore(RECONNECTS_AT_ONCE)

        async def reconnect(link: _Link) -> None:
            async with turns:
                try:
                    if await self._connect(link):
                        log.info("RDMA connection to %s (%s) is back", *link.key)
                except MedesError as error:
                    log.info("RDMA connection to %s (%s): %s", *link.key, error)

        tasks: set[asyncio.Task[None]] = set()
        while True:
            wanted = await loop.run_in_executor(self._executor, self.context.take_wanted, WANTED_WAIT_S)
            for reader_id in wanted:
                link = self._links.get(reader_id)
                if link is not None:
                    task = loop.create_task(reconnect(link))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
            if loop.time() >= evict_at:
                await loop.run_in_executor(self._executor, self.context.evict_idle, IDLE_EVICT_S)
                evict_at = loop.time() + EVICT_EVERY_S

    def stats(self) -> dict[str, int]:
        return self.context.stats()

    def close(self) -> None:
        """Readers first, then what is served. Idempotent."""
        for link in self._links.values():
            link.reader.close()
        self._links.clear()
        self.context.close()
        self._executor.shutdown(wait=False)
