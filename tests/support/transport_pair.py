"""A holder and a reader of one page transport, with TCP behind, in this process: what conformance tests read over."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from medes import native
from medes.transport.transport import Transport
from tests.support.page_links import DOMAIN, Link, SlabWorld, tcp_link

T = TypeVar("T")
HOLDER, READER = "holder", "reader"
WAIT_S = 60.0


class LoopThread:
    """The event loop that both sides are used from, as an agent's."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(WAIT_S)

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        async def inside() -> T:
            return function(*arguments)

        return self.run(inside())

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(WAIT_S)
        self._loop.close()


class Pair:
    """`make` opens one side; the world's slabs are published at the holder, over TCP as well."""

    def __init__(self, world: SlabWorld, make: Callable[[], Transport]) -> None:
        self.loop = LoopThread()
        self.world = world
        self.holding, self.reading = make(), make()
        self.tcp = tcp_link(world)
        self.offers: list[bytes] = []
        self.news: Callable[[int], bytes] = lambda base_id: self.loop.call(
            self.holding.news, READER, DOMAIN, [base_id]
        )
        for base_id, slab in world.slabs.items():
            assert self.loop.call(self.holding.publish, slab, world.domain(base_id))

    async def _exchange(self, offer: bytes) -> bytes | None:
        self.offers.append(offer)
        return self.holding.accept(READER, DOMAIN, offer, 0.0, 3600.0)

    def attach(self, *, refuse: bool = False) -> native.PageReader | None:
        async def refused(offer: bytes) -> bytes | None:
            return None

        exchange = refused if refuse else self._exchange
        return self.loop.run(self.reading.attach(HOLDER, DOMAIN, self.tcp.reader, exchange))

    def withdraw(self, base_id: int) -> None:
        self.loop.call(self.holding.withdraw, base_id)
        self.tcp.remove_slab(base_id)

    def kill_holder(self) -> None:
        self.holding.close()
        self.tcp.kill_peer()

    def close(self) -> None:
        self.reading.close()
        self.holding.close()
        self.tcp.close()
        self.loop.close()


def transport_link(
    world: SlabWorld,
    make: Callable[[], Transport],
    wrap: Callable[[native.PageReader], native.PageReader] = lambda reader: reader,
) -> Link:
    """For the suites of tests/conformance/transports.py and transport_faults.py."""
    pair = Pair(world, make)
    attached = pair.attach()
    assert attached is not None, "the holder has refused"
    reader = wrap(attached)

    def close() -> None:
        reader.close()
        pair.close()

    return Link(reader, world, pair.reading.name, pair.withdraw, pair.kill_holder, close)
