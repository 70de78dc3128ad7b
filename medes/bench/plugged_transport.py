"""One registered page transport, its two sides in this process, for `medes bench transport`."""

from __future__ import annotations

import asyncio
import contextlib
import os

from medes import native, plugins
from medes.config import AgentSettings
from medes.errors import UnsupportedError
from medes.plugins import Kind
from medes.transport.transport import Transport

HOLDER, READER = "holder", "reader"
VALID_S = 86400.0


class Connector:
    """Attaches readers; with TCP behind, as in an agent."""

    def __init__(self, stack: contextlib.ExitStack, name: str, slab: native.Slab, domain: str) -> None:
        """`stack` closes it. Raises unsupported where the transport cannot run here, or does not serve the slab."""
        self._name, self._domain = name, domain
        kind: type[Transport] = plugins.load(Kind.TRANSPORT, name)
        settings = AgentSettings(transport=name)
        self._runner = stack.enter_context(asyncio.Runner())
        self._holding = kind.open(settings)
        stack.callback(self._holding.close)
        self._reading = kind.open(settings)
        stack.callback(self._reading.close)
        self._server = native.PageServer("127.0.0.1", 0)
        stack.callback(self._server.close)
        self._server.add_slab(slab, domain)
        self._token = os.urandom(32)
        self._server.grant(self._token, domain, READER)
        if not self._holding.publish(slab, domain):
            raise UnsupportedError("it does not serve the slab", object=name)

    def connect(self) -> native.PageReader:
        """Raises unsupported when the holder refuses."""
        behind = native.tcp_reader(self._server.address, self._token, attempts=1, connect_now=False)
        reader = self._runner.run(self._attach(behind))
        if reader is None:
            raise UnsupportedError("the holder has refused", object=self._name)
        return reader

    async def _attach(self, behind: native.PageReader) -> native.PageReader | None:
        async def exchange(offer: bytes) -> bytes | None:
            return self._holding.accept(READER, self._domain, offer, 0.0, VALID_S)

        return await self._reading.attach(HOLDER, self._domain, behind, exchange)
