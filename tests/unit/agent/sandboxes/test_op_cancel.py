"""A request that arrives ends a dedup op at once, whoever the op is waiting for."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medes.agent.api import handlers
from medes.agent.daemon import AgentDaemon
from medes.agent.ops import candidates, hooks
from medes.controller.process import Controller
from medes.errors import CancelledError
from medes.types import Activity
from medes.types import SandboxState as S
from tests.support.counter_app import App
from tests.unit.agent.conftest import MakeAgent
from tests.unit.agent.ops.test_agent_ops import register, until

MakeApp = Callable[..., App]


async def ended_by_a_request(daemon: AgentDaemon, asked: asyncio.Event) -> None:
    """Starts a dedup op of s1, and a request once the op waits for an answer that never comes."""
    op = asyncio.create_task(handlers.dedup(daemon.agent, "s1"))
    await asyncio.wait({op, waits := asyncio.create_task(asked.wait())}, return_when=asyncio.FIRST_COMPLETED)
    assert waits.done()
    begun = await handlers.notify_activity(daemon.agent, "s1", Activity.BEGUN)
    assert begun.state is S.RUNNING
    with pytest.raises(CancelledError):
        await op


async def test_while_a_hook_does_not_answer(
    make_agent: MakeAgent, make_app: MakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hooks, "HOOK_TIMEOUT_S", 3600.0)
    path = Path(f"/tmp/medes-{secrets.token_hex(6)}.sock")
    asked = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await reader.read()  # until the agent hangs up
        writer.close()

    async with await asyncio.start_unix_server(silent, path):
        daemon = await make_agent()
        await register(daemon, make_app(), hook_address=f"unix:{path}")
        await ended_by_a_request(daemon, asked)
    path.unlink(missing_ok=True)


@pytest.mark.parametrize("call", ["lookup", "advise", "publish"])
async def test_while_the_controller_does_not_answer(
    make_agent: MakeAgent, make_app: MakeApp, controller: Controller, call: str
) -> None:
    daemon = await make_agent(controller=controller.address)
    await register(daemon, make_app())
    asked = asyncio.Event()

    async def silent(*_: object) -> Any:
        asked.set()
        await asyncio.Event().wait()

    setattr(daemon.agent.controller, call, silent)
    await ended_by_a_request(daemon, asked)


async def test_while_a_holder_of_base_pages_does_not_answer(
    make_agent: MakeAgent, make_app: MakeApp, controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answer comes late: what it has pinned by then is given back."""
    monkeypatch.setattr(candidates, "UNMATCHED_RATIO_MIN", 0.4)
    holder = await make_agent("n0", controller.address)
    await register(holder, make_app(16), "first")
    await handlers.dedup(holder.agent, "first")
    daemon = await make_agent("n1", controller.address)
    await register(daemon, make_app(16, 2))
    peers, asked, answers = daemon.agent.peers, asyncio.Event(), asyncio.Event()
    pin, unpin = peers.pin, peers.unpin
    given_back: list[str] = []

    async def late(node_id: str, *more: Any) -> Any:
        asked.set()
        await answers.wait()
        return await pin(node_id, *more)

    async def counted(node_id: str, *more: Any) -> None:
        await unpin(node_id, *more)
        given_back.append(node_id)

    monkeypatch.setattr(peers, "pin", late)
    monkeypatch.setattr(peers, "unpin", counted)
    (base_id,) = holder.agent.bases.bases
    before = holder.agent.pins.count(base_id)
    await ended_by_a_request(daemon, asked)
    assert given_back == []
    answers.set()
    await until(lambda: given_back == ["n0"], "given back after the answer")
    assert holder.agent.pins.count(base_id) == before
