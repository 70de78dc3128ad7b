"""Hooks around ops."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

from medes.agent.ops import hooks
from medes.agent.sandboxes.sandbox import SandboxEntry, SandboxSpec
from medes.drivers.process.subjects import ProcessSubjects
from medes.errors import DeadlineExceededError, FunctionError
from medes.types import SandboxState as S


async def hook_server(path: Path, status: str) -> tuple[asyncio.AbstractServer, list[tuple[str, dict]]]:
    calls: list[tuple[str, dict]] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = int(next(x for x in head.split("\r\n") if x.startswith("Content-Length")).split(":")[1])
        calls.append((head.split("\r\n")[0], json.loads(await reader.readexactly(length))))
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode())
        await writer.drain()
        writer.close()

    return await asyncio.start_unix_server(answer, path), calls


def hooked(path: Path) -> SandboxEntry:
    spec = SandboxSpec("s1", "f", hook_address=str(path))
    return SandboxEntry(spec, ProcessSubjects().from_json("s1", {}), "n0", S.WARM, 0.0)


async def test_a_hook_that_never_answers_is_waited_for_less_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[float] = []

    async def late(address: str, phase: str, body: object, timeout_s: float, *, owner: int | None) -> None:
        given.append(timeout_s)
        if len(given) < 12:
            raise DeadlineExceededError("late")

    monkeypatch.setattr(hooks, "call", late)
    entry = hooked(tmp_path / "hook.sock")
    for _ in range(13):
        await hooks.try_call(entry, "before-dedup", {})
    assert given[:4] == [hooks.HOOK_TIMEOUT_S / 2**n for n in range(4)]
    assert sum(given[:8]) < 2 * hooks.HOOK_TIMEOUT_S
    assert min(given) == given[10] and given[12] == hooks.HOOK_TIMEOUT_S  # one that answers is forgiven


async def test_who_listens_at_a_users_hook_is_asked_again_at_the_call(tmp_path: Path) -> None:
    server, calls = await hook_server(tmp_path / "hook.sock", "204 No Content")
    async with server:
        with pytest.raises(FunctionError, match="not user 61001"):
            await hooks.call(str(tmp_path / "hook.sock"), "before-dedup", {}, owner=61001)
        await hooks.call(str(tmp_path / "hook.sock"), "before-dedup", {}, owner=os.geteuid())
    assert len(calls) == 1


async def test_the_hook_is_posted(tmp_path: Path) -> None:
    server, calls = await hook_server(tmp_path / "hook.sock", "204 No Content")
    async with server:
        await hooks.call(f"unix:{tmp_path / 'hook.sock'}", "before-dedup", {"sandbox_id": "s1"})
        await hooks.call(f"unix:{tmp_path / 'hook.sock'}", "after-restore", {"dedup_seconds": 1.5})
    assert calls == [
        ("POST /hooks/before-dedup HTTP/1.1", {"sandbox_id": "s1"}),
        ("POST /hooks/after-restore HTTP/1.1", {"dedup_seconds": 1.5}),
    ]


async def test_a_host_need_not_have_every_hook(tmp_path: Path) -> None:
    server, calls = await hook_server(tmp_path / "hook.sock", "404 Not Found")
    async with server:
        assert await hooks.try_call(hooked(tmp_path / "hook.sock"), "before-dedup", {}) == ""
    assert len(calls) == 1


async def test_a_hook_that_fails_is_reported_and_not_raised(tmp_path: Path) -> None:
    server, _ = await hook_server(tmp_path / "hook.sock", "500 Oops")
    async with server:
        with pytest.raises(FunctionError, match="500"):
            await hooks.call(str(tmp_path / "hook.sock"), "after-restore", {})
    assert "after-restore hook" in await hooks.try_call(hooked(tmp_path / "nobody"), "after-restore", {})
