"""Error mapping, deadlines, TLS-less addresses and servers: a real grpc.aio server in this process."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from medes.rpc.gen import agent_pb2, agent_pb2_grpc

from medes import errors
from medes.rpc import services
from medes.rpc.address import parse_address
from medes.rpc.channel import aio_channel, sync_channel
from medes.rpc.server import RpcServer
from medes.rpc.status import ERROR_METADATA_KEY, error_from_status


class Service(agent_pb2_grpc.AgentServiceServicer):
    """Get raises the catalogue error named by the sandbox id; Watch yields one event, then raises."""

    async def Get(self, request: Any, context: Any) -> Any:
        if request.sandbox_id == "bug":
            raise ZeroDivisionError("oops")
        if request.sandbox_id == "slow":
            await asyncio.sleep(30)
        if request.sandbox_id in errors.BY_CODE:
            raise errors.from_code(request.sandbox_id, "what", "which", "do this")
        return agent_pb2.Sandbox(sandbox_id=request.sandbox_id)

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:
        yield agent_pb2.SandboxEvent(sequence=1)
        raise errors.LimitExceededError("too slow", object="watcher")


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[tuple[str, list[tuple[str, str]]]]:
    seen: list[tuple[str, str]] = []
    server = RpcServer(observer=lambda method, code, seconds: seen.append((method.rsplit("/", 1)[1], code)))
    agent_pb2_grpc.add_AgentServiceServicer_to_server(Service(), server.server)
    server.add_service("medes.v1.AgentService")
    address = server.bind(f"unix:{tmp_path}/a.sock")
    await server.start()
    yield address.target, seen
    await server.stop(0.1)
    assert not (tmp_path / "a.sock").exists()


@pytest.mark.parametrize("code", sorted(errors.BY_CODE))
async def test_every_catalogue_error_arrives_whole(served: Any, code: str) -> None:
    address, seen = served
    async with aio_channel(address) as channel:
        with pytest.raises(errors.BY_CODE[code]) as caught:
            await agent_pb2_grpc.AgentServiceStub(channel).Get(agent_pb2.GetRequest(sandbox_id=code))
    assert (caught.value.code, caught.value.message) == (code, "what")
    assert (caught.value.object, caught.value.hint) == ("which", "do this")
    assert seen == [("Get", errors.BY_CODE[code].grpc_status)]


async def test_answers_pass_unchanged(served: Any) -> None:
    address, seen = served
    async with aio_channel(address) as channel:
        answer = await agent_pb2_grpc.AgentServiceStub(channel).Get(agent_pb2.GetRequest(sandbox_id="x"))
    assert answer.sandbox_id == "x"
    assert seen == [("Get", "OK")]


async def test_blocking_channel_raises_the_same(served: Any) -> None:
    address, _ = served

    def call(sandbox_id: str) -> str:
        with sync_channel(address) as channel:
            stub = agent_pb2_grpc.AgentServiceStub(channel)
            return str(stub.Get(agent_pb2.GetRequest(sandbox_id=sandbox_id)).sandbox_id)

    with pytest.raises(errors.LostError, match="which: what"):
        await asyncio.to_thread(call, "lost")
    assert await asyncio.to_thread(call, "y") == "y"


async def test_streams_raise_after_what_came(served: Any) -> None:
    address, seen = served
    got = []
    async with aio_channel(address) as channel:
        with pytest.raises(errors.LimitExceededError, match="too slow"):
            async for event in agent_pb2_grpc.AgentServiceStub(channel).Watch(agent_pb2.WatchRequest()):
                got.append(event.sequence)
    assert got == [1]
    assert seen == [("Watch", "OUT_OF_RANGE")]

    def blocking() -> None:
        with sync_channel(address) as channel:
            for event in agent_pb2_grpc.AgentServiceStub(channel).Watch(agent_pb2.WatchRequest()):
                got.append(event.sequence)

    with pytest.raises(errors.LimitExceededError):
        await asyncio.to_thread(blocking)
    assert got == [1, 1]


async def test_unknown_exceptions_become_internal_and_are_logged(served: Any, caplog: Any) -> None:
    address, _ = served
    async with aio_channel(address) as channel:
        with pytest.raises(errors.InternalError, match="ZeroDivisionError: oops"):
            await agent_pb2_grpc.AgentServiceStub(channel).Get(agent_pb2.GetRequest(sandbox_id="bug"))
    assert "ZeroDivisionError" in caplog.text


async def test_default_deadline(served: Any) -> None:
    address, _ = served
    async with aio_channel(address, timeout_s=0.2) as channel:
        with pytest.raises(errors.DeadlineExceededError):
            await agent_pb2_grpc.AgentServiceStub(channel).Get(agent_pb2.GetRequest(sandbox_id="slow"))


async def test_malformed_request_is_the_callers_fault(served: Any) -> None:
    address, _ = served
    async with aio_channel(address) as channel:
        raw = channel.unary_unary("/medes.v1.AgentService/Get")
        with pytest.raises(errors.InvalidArgumentError, match="malformed request"):
            await raw(b"\xff\xff\xff")
        with pytest.raises(errors.UnsupportedError):
            await channel.unary_unary("/medes.v1.AgentService/Nothing")(b"")


async def test_a_request_that_is_too_long_is_not_even_sent(served: Any) -> None:
    address, seen = served
    stub = agent_pb2_grpc.AgentServiceStub
    request = agent_pb2.GetRequest(sandbox_id="x" * 1000)

    async with aio_channel(address, request_bytes_max=1000) as channel:
        with pytest.raises(errors.LimitExceededError, match="at most 1000"):
            await stub(channel).Get(request)
        with pytest.raises(errors.LimitExceededError, match="at most 1000"):
            async for _ in stub(channel).Watch(agent_pb2.WatchRequest(function="x" * 1000)):
                pass

    def blocking() -> None:
        with sync_channel(address, request_bytes_max=1000) as channel:
            with pytest.raises(errors.LimitExceededError, match="at most 1000"):
                stub(channel).Get(request)
            with pytest.raises(errors.LimitExceededError, match="at most 1000"):
                list(stub(channel).Watch(agent_pb2.WatchRequest(function="x" * 1000)))

    await asyncio.to_thread(blocking)
    assert seen == []


async def test_an_answer_that_is_too_long_is_refused_by_its_server(
    served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, seen = served
    monkeypatch.setattr(services, "GRPC_MESSAGE_BYTES_MAX", 1000)
    async with aio_channel(address) as channel:
        stub = agent_pb2_grpc.AgentServiceStub(channel)
        assert (await stub.Get(agent_pb2.GetRequest(sandbox_id="x" * 900))).sandbox_id == "x" * 900
        with pytest.raises(errors.LimitExceededError, match="at most 1000") as caught:
            await stub.Get(agent_pb2.GetRequest(sandbox_id="x" * 1000))
    assert caught.value.object == "/medes.v1.AgentService/Get"
    assert [code for _, code in seen] == ["OK", "OUT_OF_RANGE"]


async def test_unreachable_is_what_the_channel_says(tmp_path: Path) -> None:
    async with aio_channel(
        f"unix:{tmp_path}/no.sock", unreachable=errors.ControllerUnreachableError
    ) as channel:
        with pytest.raises(errors.ControllerUnreachableError) as caught:
            await agent_pb2_grpc.AgentServiceStub(channel).Get(agent_pb2.GetRequest())
    assert str(tmp_path) in caught.value.object
    assert caught.value.transient


async def test_health_and_reflection(served: Any) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    address, _ = served
    async with aio_channel(address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        answer = await health.Check(health_pb2.HealthCheckRequest(service="medes.v1.AgentService"))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        ask = reflection_pb2.ServerReflectionRequest(list_services="")
        stream = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([ask]))
        names = [s.name async for r in stream for s in r.list_services_response.service]
        assert "medes.v1.AgentService" in names


async def test_socket_mode_stale_and_taken(tmp_path: Path) -> None:
    path = tmp_path / "b.sock"
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    first = RpcServer()
    first.bind(f"unix:{path}", unix_mode=0o600)
    await first.start()
    assert path.stat().st_mode & 0o777 == 0o600
    second = RpcServer()
    with pytest.raises(errors.AlreadyExistsError):
        second.bind(f"unix:{path}")
    await second.stop(0)
    await first.stop(0)
    (tmp_path / "file").write_text("keep me")
    third = RpcServer()
    with pytest.raises(errors.InvalidArgumentError):
        third.bind(f"unix:{tmp_path}/file")
    assert (tmp_path / "file").read_text() == "keep me"
    await third.stop(0)


async def test_taken_port_is_an_error() -> None:
    first, second = RpcServer(), RpcServer()
    address = first.bind("127.0.0.1:0")
    await first.start()
    with pytest.raises(errors.IoError):
        second.bind(address.target)
    await second.stop(0)
    await first.stop(0)


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("unix:/run/a", "unix:/run/a"),
        ("unix:///run/a", "unix:/run/a"),
        ("h:1", "h:1"),
        ("[::1]:80", "[::1]:80"),
    ],
)
def test_addresses(text: str, target: str) -> None:
    assert parse_address(text).target == target


@pytest.mark.parametrize(
    "text", ["", "h", "h:", ":1", "h:0", "h:65536", "::1:80", "unix:", "unix:a", "unix:/" + "a" * 107, "h:²"]
)
def test_bad_addresses(text: str) -> None:
    with pytest.raises(errors.InvalidArgumentError):
        parse_address(text)


def test_broken_error_detail_falls_back_to_the_status() -> None:
    for value in (b"\xff\xff", b"\x0a\x07unheard"):
        error = error_from_status(grpc.StatusCode.NOT_FOUND, "gone", [(ERROR_METADATA_KEY, value)], peer="p")
        assert type(error) is errors.NotFoundError
        assert error.message == "gone"


async def test_long_error_texts_are_cut_not_dropped(tmp_path: Path) -> None:
    class Verbose(agent_pb2_grpc.AgentServiceServicer):
        async def Get(self, request: Any, context: Any) -> Any:
            raise errors.CorruptError("ü" * 100_000, object="ö" * 5000, hint="é" * 5000)

    server = RpcServer()
    agent_pb2_grpc.add_AgentServiceServicer_to_server(Verbose(), server.server)
    address = server.bind(f"unix:{tmp_path}/v.sock")
    await server.start()
    async with aio_channel(address.target) as channel:
        with pytest.raises(errors.CorruptError) as caught:
            await agent_pb2_grpc.AgentServiceStub(channel).Get(agent_pb2.GetRequest())
    assert caught.value.message.startswith("üüü")
    assert len(caught.value.message) < 1000
    await server.stop(0)


async def test_the_sockets_folder_is_made_one_level_deep(tmp_path: Path) -> None:
    server = RpcServer()
    server.bind(f"unix:{tmp_path}/run/s.sock")
    with pytest.raises(errors.IoError, match="folder"):
        server.bind(f"unix:{tmp_path}/a/b/s.sock")
    await server.stop(0)
