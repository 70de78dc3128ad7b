"""Page tokens end: whoever reads asks for the next one in time, and connections are made anew with it beside the reads.

A reader that was late all the same (this process was stopped, the peer did not answer) finds its token refused. It says
so through `wake` and waits for a moment, in which this asks at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Mapping

from medes import native
from medes.agent.node.workers import Run
from medes.errors import MedesError

log = logging.getLogger(__name__)

Key = tuple[str, str]  # (node, domain)
RENEW_AT = 0.5  # of the time that was left when it was granted
SPACING_S_MIN = 0.2  # whatever a peer says
RETRY_S_MAX = 10.0
AT_ONCE = 16
NEVER = float("inf")


class PageRenewal:
    """Use from one event loop. `ask` gets and sets a reader's new token: how long it is good for (0: for ever, as an
    older peer's), and whether it differs from the one before. `readers` are those that are open; `run` makes handshakes."""

    def __init__(
        self,
        ask: Callable[[Key], Awaitable[tuple[float, bool]]],
        readers: Callable[[], Mapping[Key, native.PageReader]],
        run: Run,
    ) -> None:
        self._ask = ask
        self._readers = readers
        self._due_s: dict[Key, float] = {}
        self._refused: dict[Key, int] = {}  # as the reader's stats last said
        self._under_way: dict[Key, asyncio.Task[None]] = {}
        self._anew: set[Key] = set()  # whose connections are made anew even if their token stays
        self._changed = asyncio.Event()
        self._turns = asyncio.Semaphore(AT_ONCE)
        self.wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._run = run
        self._handshakes: set[asyncio.Future[bool]] = set()  # under way; they use the readers and `wake`

    def granted(self, key: Key, valid_s: float) -> None:
        """A token that is good for so long was just set; 0: for ever."""
        self._set_due(key, max(SPACING_S_MIN, valid_s * RENEW_AT) if valid_s > 0 else NEVER)

    def reconnect_all(self) -> None:
        """What this node shows or believes has changed: connections are made anew."""
        for key in self._readers():
            self._anew.add(key)
            self._start(key)

    async def run(self) -> None:
        """Ends when cancelled."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self.wake, self._look_for_refused)
        try:
            while True:
                self._changed.clear()
                now_s = loop.time()
                for key in [k for k, due_s in self._due_s.items() if due_s <= now_s]:
                    self._due_s[key] = NEVER  # until it is done
                    self._start(key)
                wait_s = min(self._due_s.values(), default=NEVER) - now_s
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), None if wait_s == NEVER else max(0, wait_s))
        finally:
            loop.remove_reader(self.wake)

    async def close(self) -> None:
        """After the readers. Idempotent."""
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*self._handshakes, return_exceptions=True)
        if self.wake >= 0:
            os.close(self.wake)
            self.wake = -1

    def _set_due(self, key: Key, in_s: float) -> None:
        self._due_s[key] = asyncio.get_running_loop().time() + in_s
        self._changed.set()

    def _look_for_refused(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.wake)
        for key, reader in self._readers().items():
            refused = reader.stats()["refused_tokens"]
            if refused != self._refused.get(key, 0):
                self._refused[key] = refused
                self._start(key)

    def _start(self, key: Key) -> None:
        if key in self._under_way:
            return
        task = self._under_way[key] = asyncio.get_running_loop().create_task(self._renew(key))

        def ended(_: asyncio.Task[None]) -> None:
            del self._under_way[key]
            if task.cancelled():
                return
            if error := task.exception():
                log.error("page token of %s (%s)", *key, exc_info=error)
                self._set_due(key, RETRY_S_MAX)
            elif key in self._anew:  # asked for at its very end
                self._start(key)

        task.add_done_callback(ended)

    async def _renew(self, key: Key) -> None:
        pause_s = SPACING_S_MIN
        while True:
            try:
                async with self._turns:
                    valid_s, other = await self._ask(key)
                break
            except MedesError as error:
                log.info("no new token for pages of %s (%s): %s", *key, error)
            await asyncio.sleep(pause_s)
            pause_s = min(RETRY_S_MAX, 2 * pause_s)
        self.granted(key, valid_s)
        reader = self._readers().get(key)
        anew = other or key in self._anew
        self._anew.discard(key)
        if reader is None or not anew:
            return
        try:
            handshake = asyncio.ensure_future(self._run(reader.reconnect))
            self._handshakes.add(handshake)
            handshake.add_done_callback(self._handshakes.discard)
            await asyncio.shield(handshake)
        except MedesError as error:
            log.info("pages of %s (%s): %s", *key, error)
