"""RDMA on one node: what its agent serves, and the readers of its peers that it keeps connected.

A node uses one or several ports (*rails*). Every slab is registered on each of them; a connection is on one, chosen
in turn by the reader and, among its own, by the holder for nearness to the reader's.

Queue pairs are set up by an exchange of endpoints that the agent carries over its peer service. A reader whose
connection was lost or evicted reads over TCP until `run` has exchanged endpoints anew; nothing here is on the path
of a read. A holder cannot see READs, so readers name the connections they use every so often (`keep`), and those
that nobody names are closed (`reap`). Use the async parts from one event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from medes import native
from medes.errors import BusyError, InvalidArgumentError, MedesError, UnsupportedError
from medes.transport.rdma.link_watch import LinkWatch

log = logging.getLogger(__name__)

WANTED_WAIT_S = 1.0
IDLE_EVICT_S = 300.0  # a queue pair unused this long is closed
EVICT_EVERY_S = 30.0
RECONNECTS_AT_ONCE = 16
TRIAL_BYTES = 16
TRIAL_TIMEOUT_S = 5.0  # of the first READ on a rail, where there is another to try
NO_END_S = float("inf")
IPV4_MAPPED = bytes(10) + b"\xff\xff"


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
    rail: int
    reader: native.RdmaReader
    exchange: Exchange
    combined: native.PageReader | None = None  # with TCP behind it


@dataclass(slots=True)
class _Accepted:
    rail: int
    connection_id: int
    kept_s: float  # when the peer last said that it uses it
    ends_s: float  # as the token that was granted with it


def open_rdma(devices: str = "") -> RdmaNode:
    """This node's RDMA. Blocks for some milliseconds.

    `devices` are ports as device or device:port, separated by commas; empty: all that are active. Raises
    invalid_argument, and unsupported where there is no library or no device.
    """
    return RdmaNode(
        [native.RdmaContext(name, port) for name, port in parse_devices(devices) or _active_ports()]
    )


def parse_devices(devices: str) -> list[tuple[str, int]]:
    """The ports that a setting names; port 0 is the device's first active one. Raises invalid_argument."""
    ports: list[tuple[str, int]] = []
    for item in filter(None, (part.strip() for part in devices.split(","))):
        name, colon, port = item.partition(":")
        if not name or (colon and not (port.isascii() and port.isdigit() and 1 <= int(port) <= 255)):
            raise InvalidArgumentError("a port is device or device:number", object=item)
        ports.append((name, int(port or 0)))
    if len(set(ports)) != len(ports):
        raise InvalidArgumentError("a port is named twice", object=devices)
    return ports


def _active_ports() -> list[tuple[str, int]]:
    """All ports that can be used; the first of any device, which says what is wrong with it, when there is none."""
    found = [d for d in native.rdma_devices() if d["active"] and int(str(d["gid_index"])) >= 0]
    return [(str(d["name"]), int(str(d["port"]))) for d in found] or [("", 0)]


def nearness(own: bytes, remote: bytes) -> int:
    """How many leading bits two GIDs have in common; -1 when an IPv4 and an IPv6 port cannot reach each other."""
    if own.startswith(IPV4_MAPPED) != remote.startswith(IPV4_MAPPED):
        return -1
    difference = int.from_bytes(own, "big") ^ int.from_bytes(remote, "big")
    return 8 * len(own) - difference.bit_length()


class RdmaNode:
    """Slabs served, queue pairs granted, readers kept connected, on one or several rails."""

    def __init__(self, rails: Sequence[native.RdmaContext]) -> None:
        self._rails = list(rails)
        self._turn = 0
        self._served: dict[int, str] = {}  # base id → domain
        self._accepted: dict[LinkKey, _Accepted] = {}
        self._links: dict[tuple[int, int], _Link] = {}  # by (rail, reader id)
        self._watch = LinkWatch()
        # Threads of its own: one a rail mostly sleeps in take_wanted.
        self._executor = ThreadPoolExecutor(len(self._rails) + 1, "medes-rdma")

    @property
    def ports(self) -> list[str]:
        return [f"{rail.device}:{rail.port}" for rail in self._rails]

    def _in_turn(self, rails: Sequence[int]) -> list[int]:
        """`rails`, a different one first each time."""
        self._turn += 1
        first = self._turn % len(rails) if rails else 0
        return [*rails[first:], *rails[:first]]

    # --- serving -------------------------------------------------------------------------------------------
    def publish(self, slab: native.Slab, domain: str) -> bool:
        """Registers a slab; blocks about as long as touching its pages. False: peers read it over TCP."""
        published = False
        for port, rail in zip(self.ports, self._rails, strict=True):
            try:
                rail.add_slab(slab, domain)
                published = True
            except MedesError as error:
                log.warning("base %016x is not served on %s: %s", slab.base_id, port, error)
        if published:
            self._served[slab.base_id] = domain
        return published

    def retire(self, base_id: int) -> None:
        if self._served.pop(base_id, None) is not None:
            for rail in self._rails:
                rail.remove_slab(base_id)

    def regions(
        self, node_id: str, domain: str, base_ids: Iterable[int] | None = None
    ) -> list[native.RdmaRegion]:
        """Keys of a domain's slabs (all, or those named) for a peer that is connected to it; nobody else gets any."""
        accepted = self._accepted.get((node_id, domain))
        if accepted is None:
            return []
        rail = self._rails[accepted.rail]
        wanted = self._served if base_ids is None else base_ids
        found = (rail.region(base_id, domain) for base_id in list(wanted))
        return [region for region in found if region is not None]

    def accept(
        self, node_id: str, domain: str, remote: native.RdmaEndpoint, now_s: float, valid_s: float = NO_END_S
    ) -> RdmaAnswer:
        """A queue pair for that node and domain, for so long at most; the one it had is closed. No endpoint when the
        bound is reached."""
        self.release(node_id, domain)
        near = {i: nearness(rail.gid, remote.gid) for i, rail in enumerate(self._rails)}
        fitting = self._in_turn([i for i in near if near[i] >= 0])
        for i in sorted(fitting, key=lambda i: -near[i]):
            try:
                connection_id, endpoint = self._rails[i].accept(remote, domain, node_id)
            except BusyError as error:
                log.warning("%s on %s: %s", node_id, self.ports[i], error)
                continue
            self._accepted[node_id, domain] = _Accepted(i, connection_id, now_s, now_s + valid_s)
            return RdmaAnswer(endpoint, tuple(self.regions(node_id, domain)))
        return NO_RDMA

    def release(self, node_id: str, domain: str) -> None:
        """Closes the queue pair of that node and domain. Idempotent."""
        accepted = self._accepted.pop((node_id, domain), None)
        if accepted is not None:
            self._rails[accepted.rail].disconnect(accepted.connection_id)

    def keep(self, node_id: str, domains: Iterable[str], now_s: float) -> None:
        """That node still uses its queue pairs to these domains."""
        for domain in domains:
            if (node_id, domain) in self._accepted:
                self._accepted[node_id, domain].kept_s = now_s

    def reap(self, silent_since_s: float, now_s: float) -> int:
        """Closes queue pairs that were neither made nor kept since then, or whose end has come; returns how many."""
        dead = [
            key
            for key, accepted in self._accepted.items()
            if accepted.kept_s < silent_since_s or accepted.ends_s <= now_s
        ]
        for node_id, domain in dead:
            log.info("RDMA connection of %s (%s) is not used any more, or too old", node_id, domain)
            self.release(node_id, domain)
        return len(dead)

    # --- reading -------------------------------------------------------------------------------------------
    async def attach(
        self, node_id: str, domain: str, second: native.PageReader, exchange: Exchange
    ) -> native.PageReader:
        """A reader that uses RDMA first and `second` for what that cannot do; `second` itself if the peer has none.

        Raises what the exchange raises.
        """
        for rail in self._in_turn(range(len(self._rails))):
            link = _Link((node_id, domain), rail, self._rails[rail].reader(), exchange)
            answer = await self._connect(link)
            if answer is None:
                continue
            if answer.endpoint is None:
                break
            if len(self._rails) > 1 and not await self._reaches(link, answer):
                link.reader.close()
                continue
            for old in [i for i, known in self._links.items() if known.key == link.key]:
                del self._links[old]
            self._links[rail, link.reader.id] = link
            self._watch.forget(*link.key)
            link.combined = native.fallback_reader(link.reader, second)
            return link.combined
        return second

    async def _reaches(self, link: _Link, answer: RdmaAnswer) -> bool:
        """Whether this rail's network leads to the peer: a queue pair is connected without sending anything."""
        if not answer.regions:
            return True
        base_id = answer.regions[0].base_id
        try:
            await asyncio.get_running_loop().run_in_executor(
                self._executor, lambda: link.reader.read(base_id, 0, TRIAL_BYTES, TRIAL_TIMEOUT_S)
            )
            return True
        except MedesError as error:
            log.warning("%s cannot be read from %s: %s", link.key[0], self.ports[link.rail], error)
            return False

    def add_regions(self, node_id: str, domain: str, regions: Iterable[native.RdmaRegion]) -> None:
        """Bases that the peer published after the connection was made."""
        for link in self._links.values():
            if link.key == (node_id, domain):
                for region in regions:
                    link.reader.add_region(region)

    def keep_regions(self, node_id: str, base_ids: Iterable[int]) -> int:
        """Forgets where that node's other bases are, for they may be gone; returns how many. Right at any time for
        bases that are not pinned there: a pin brings the base's region anew."""
        kept = list(base_ids)
        return sum(link.reader.keep_regions(kept) for link in self._links.values() if link.key[0] == node_id)

    def in_use(self, node_id: str) -> list[str]:
        """The domains that this node reads there by RDMA at present."""
        return [
            link.key[1] for link in self._links.values() if link.key[0] == node_id and link.reader.connected
        ]

    async def _connect(self, link: _Link) -> RdmaAnswer | None:
        """The peer's answer once connected, or its refusal; None when it failed on this side."""
        loop = asyncio.get_running_loop()
        try:
            endpoint = await loop.run_in_executor(self._executor, link.reader.offer)
        except BusyError as error:
            log.warning("%s: %s", link.key[0], error)
            return None
        # A peer that was started anew has registered its slabs anew: what it says now replaces what was known. Before
        # the exchange, so that the region of a base pinned meanwhile stays.
        link.reader.keep_regions([])
        answer = await link.exchange(endpoint)
        if answer.endpoint is None:
            return answer
        for region in answer.regions:
            link.reader.add_region(region)
        try:
            await loop.run_in_executor(self._executor, link.reader.connect, answer.endpoint)
        except UnsupportedError:
            raise
        except MedesError as error:
            log.warning("%s: RDMA connection failed, reading over TCP: %s", link.key[0], error)
            return None
        return answer

    async def run(self) -> None:
        """Reconnects readers that were used without a connection and closes idle ones; ends when cancelled."""
        async with asyncio.TaskGroup() as group:
            for rail in range(len(self._rails)):
                group.create_task(self._run_rail(rail))

    async def _run_rail(self, rail: int) -> None:
        loop = asyncio.get_running_loop()
        context = self._rails[rail]
        evict_at = loop.time() + EVICT_EVERY_S
        turns = asyncio.Semaphore(RECONNECTS_AT_ONCE)

        async def reconnect(link: _Link) -> None:
            async with turns:
                try:
                    answer = await self._connect(link)
                    if answer is not None and answer.endpoint is not None:
                        log.info("RDMA connection to %s (%s) is back", *link.key)
                except MedesError as error:
                    log.info("RDMA connection to %s (%s): %s", *link.key, error)

        tasks: set[asyncio.Task[None]] = set()
        while True:
            wanted = await loop.run_in_executor(self._executor, context.take_wanted, WANTED_WAIT_S)
            self._look_at_links(rail, loop.time())
            for reader_id in wanted:
                link = self._links.get((rail, reader_id))
                if link is not None:
                    task = loop.create_task(reconnect(link))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
            if loop.time() >= evict_at:
                await loop.run_in_executor(self._executor, context.evict_idle, IDLE_EVICT_S)
                evict_at = loop.time() + EVICT_EVERY_S

    def _look_at_links(self, rail: int, now_s: float) -> None:
        for (on, _), link in self._links.items():
            if on == rail and link.combined is not None:
                self._watch.look(*link.key, link.combined.stats(), now_s)

    def stats(self) -> dict[str, int]:
        """Sums over the rails."""
        total: Counter[str] = Counter()
        for rail in self._rails:
            total.update(rail.stats())
        return dict(total)

    def close(self) -> None:
        """Readers first, then what is served. Idempotent."""
        for link in self._links.values():
            link.reader.close()
        self._links.clear()
        for rail in self._rails:
            rail.close()
        self._executor.shutdown(wait=False)
