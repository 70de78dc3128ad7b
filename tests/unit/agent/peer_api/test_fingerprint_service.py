"""ListFingerprints between agents: what a holder gives of its bases, to whom, and what its caller takes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import grpc.aio
import pytest
from medes.rpc.gen import peer_pb2 as pb
from medes.rpc.gen import peer_pb2_grpc

from medes import native
from medes.agent.api import handlers
from medes.agent.api.registration import Registration
from medes.agent.bases.bases import LocalBase
from medes.agent.daemon import AgentDaemon
from medes.agent.peer_api import fingerprint_service
from medes.agent.peer_client import PeerClient
from medes.errors import BusyError, CorruptError, InvalidArgumentError, NotFoundError, PermissionDeniedError
from medes.types import BaseDescriptor
from tests.support import fingerprints
from tests.support.certificates import of_run
from tests.support.counter_app import App
from tests.unit.agent.conftest import MakeAgent

BASE = BaseDescriptor(base_id=7, holders=("n0",), domain="d", function="f", page_count=5)


@pytest.fixture
async def holder(make_agent: MakeAgent, make_app: Callable[..., App]) -> AgentDaemon:
    """With one base, in the domain "default"."""
    daemon = await make_agent("n0")
    await handlers.register(
        daemon.agent, Registration(sandbox_id="a", function="f", pids=(make_app(megabytes=1).pid,))
    )
    await handlers.dedup(daemon.agent, "a")
    return daemon


@pytest.fixture
async def client(holder: AgentDaemon) -> AsyncIterator[PeerClient]:
    client = PeerClient("n1", "n0", holder.peer_address, of_run("n1"))
    yield client
    await client.close()


def base_of(holder: AgentDaemon) -> LocalBase:
    (base,) = holder.agent.bases.bases.values()
    return base


@pytest.mark.parametrize("k", [1, 8, 16])
async def test_all_pages_come_in_order_in_parts(
    holder: AgentDaemon, client: PeerClient, monkeypatch: pytest.MonkeyPatch, k: int
) -> None:
    monkeypatch.setattr(fingerprint_service, "FINGERPRINT_PART_PAGES_MAX", 100)
    base = base_of(holder)
    assert base.descriptor.page_count > 250, "more than two parts"
    expected = base.slab.fingerprint(k)
    assert await client.fingerprints(base.descriptor, k) == (expected.hashes, expected.positions)


async def test_a_base_that_may_not_be_pinned_is_not_found(holder: AgentDaemon, client: PeerClient) -> None:
    descriptor = base_of(holder).descriptor
    for stranger in (replace(descriptor, domain="other"), replace(descriptor, base_id=5)):
        with pytest.raises(NotFoundError, match="no such base"):
            await client.fingerprints(stranger, 8)
    holder.agent.bases.retire(descriptor.base_id)
    with pytest.raises(NotFoundError, match="retired"):
        await client.fingerprints(descriptor, 8)


async def test_requests_that_make_no_sense_are_refused(holder: AgentDaemon, client: PeerClient) -> None:
    descriptor = base_of(holder).descriptor
    for k in (0, native.MAX_SAMPLES + 1, 2**32 - 1):
        with pytest.raises(InvalidArgumentError, match="samples a page"):
            await client.fingerprints(descriptor, k)
    for domain in ("", "x" * 201):
        with pytest.raises(InvalidArgumentError, match="must be named"):
            await client.fingerprints(replace(descriptor, domain=domain), 8)
    nameless = PeerClient("", "n0", holder.peer_address, of_run("n1"))
    with pytest.raises(PermissionDeniedError, match="for another"):
        await nameless.fingerprints(descriptor, 8)
    await nameless.close()


async def test_calls_have_their_turn_and_too_many_are_refused(
    holder: AgentDaemon, client: PeerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprint_service, "FINGERPRINT_CALLS_QUEUED_MAX", 2)
    gate, under_way, most = asyncio.Event(), 0, 0
    in_ops = holder.agent.in_ops

    async def gated(function: Callable[..., Any], *arguments: Any) -> Any:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await gate.wait()
        under_way -= 1
        return await in_ops(function, *arguments)

    monkeypatch.setattr(holder.agent, "in_ops", gated)
    descriptor = base_of(holder).descriptor
    calls = [asyncio.create_task(client.fingerprints(descriptor, 8)) for _ in range(3)]
    with pytest.raises(BusyError):
        await next(asyncio.as_completed(calls))
    gate.set()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert sorted(type(r) for r in results if isinstance(r, Exception)) == [BusyError]
    assert most == 1
    assert len((await client.fingerprints(descriptor, 8))[1]) == descriptor.page_count * 8


class _Answers(peer_pb2_grpc.PeerServiceServicer):  # type: ignore[misc]
    def __init__(self, parts: list[tuple[bytes, bytes]]) -> None:
        self._parts = parts

    async def ListFingerprints(self, request: Any, context: Any) -> AsyncIterator[Any]:
        for hashes, positions in self._parts:
            yield pb.FingerprintPart(hashes=hashes, positions=positions)


HASHES, POSITIONS = fingerprints.hashes(1, 5), fingerprints.positions(5)


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [(HASHES[:-64], POSITIONS[:-8])],
        [(HASHES, POSITIONS), (HASHES, POSITIONS)],
        [(HASHES, b"")],
        [(HASHES[:-1], POSITIONS)],
    ],
    ids=["nothing", "a page too few", "twice", "no positions", "half a hash"],
)
async def test_an_answer_that_does_not_fit_the_base_is_corrupt(parts: list[tuple[bytes, bytes]]) -> None:
    server = grpc.aio.server()
    peer_pb2_grpc.add_PeerServiceServicer_to_server(_Answers(parts), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    client = PeerClient("n1", "n0", f"127.0.0.1:{port}")
    with pytest.raises(CorruptError):
        await client.fingerprints(BASE, 8)
    await client.close()
    await server.stop(0)
