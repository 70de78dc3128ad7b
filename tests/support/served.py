"""Runs a servicer on a thread with its own event loop, so that blocking clients and command lines can call it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from medes.certs.identity import Identity
from medes.rpc.server import RpcServer
from tests.support.certificates import of_run


@contextlib.contextmanager
def served(
    add: Callable[[Any], None],
    address: str,
    identity: Identity | None = None,
    service: str = "medes.v1.AgentService",
) -> Iterator[str]:
    """Serves what `add(grpc_server)` adds, named `service`, over TCP as the node "fake" unless told; yields the
    address."""
    loop = asyncio.new_event_loop()
    ready = threading.Event()
    result: list[str] = []
    failure: list[BaseException] = []
    stop = asyncio.Event()

    async def serve() -> None:
        server = RpcServer()
        try:
            add(server.server)
            server.add_service(service)
            result.append(server.bind(address, identity or of_run("fake")).target)
            await server.start()
        except BaseException as error:
            failure.append(error)
            raise
        finally:
            ready.set()
        await stop.wait()
        await server.stop(0.1)

    def work() -> None:
        asyncio.set_event_loop(loop)
        with contextlib.suppress(Exception):
            loop.run_until_complete(serve())
        loop.close()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert ready.wait(20)
        if failure:
            raise failure[0]
        yield result[0]
    finally:
        if not loop.is_closed():
            loop.call_soon_threadsafe(stop.set)
        thread.join(20)
