"""What the controller hears of a node, and when."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest

from medes.agent.api import handlers
from medes.agent.daemon import AgentDaemon
from medes.agent.ops.base_op import retire_base
from medes.config import ControllerSettings
from medes.controller.process import Controller
from medes.errors import ControllerUnreachableError
from medes.types import NodeEndpoints
from tests.support.counter_app import App
from tests.support.ports import free_port
from tests.unit.agent.conftest import MakeAgent
from tests.unit.agent.ops.test_agent_ops import register, until


async def test_savings_are_told_when_they_change_and_not_at_the_next_heartbeat(
    make_agent: MakeAgent, make_app: Callable[..., App]
) -> None:
    settings = ControllerSettings(listen="127.0.0.1:0", heartbeat_interval_ms=300_000, lease_ms=600_000)
    async with Controller(settings) as controller:
        daemon = await make_agent("n0", controller.address)
        await until(lambda: daemon.agent.controller.connected, "joined")
        await register(daemon, make_app())

        def told() -> list[tuple[int, int]]:
            records = controller.state.membership.records(0.0)
            return [(f.kept_bytes, f.warm_bytes) for r in records for f in r.functions]

        def expected() -> list[tuple[int, int]]:
            return [(f.kept_bytes, f.warm_bytes) for f in daemon.agent.function_usage()]

        await handlers.dedup(daemon.agent, "s1")
        await until(
            lambda: told() == expected() and controller.state.cluster_bytes(0.0)["kept"] > 0, "asleep"
        )
        await handlers.restore(daemon.agent, "s1", eager=True)
        await until(
            lambda: told() == expected() and controller.state.cluster_bytes(0.0)["kept"] == 0, "awake"
        )


class Clusters:
    """Controllers of one registry each, and the agent that is to join one of them."""

    def __init__(self, make_agent: MakeAgent) -> None:
        self._make_agent = make_agent
        self.addresses = [f"127.0.0.1:{free_port()}" for _ in range(2)]
        self.running: dict[int, Controller] = {}

    async def start(self, at: int) -> None:
        settings = ControllerSettings(listen=self.addresses[at], heartbeat_interval_ms=50, lease_ms=60_000)
        self.running[at] = Controller(settings)
        await self.running[at].start()

    async def end(self, at: int) -> None:
        await self.running.pop(at).stop()

    async def agent(self) -> AgentDaemon:
        daemon = await self._make_agent("n0", controllers=tuple(self.addresses))
        await until(lambda: daemon.agent.controller.connected, "joined")
        return daemon

    def knows(self, at: int) -> tuple[int, set[str]]:
        """Bases, sandboxes."""
        state = self.running[at].state
        return len(state.store.bases()), {r.sandbox_id for r in state.directory.list("", "")}


@pytest.fixture
async def clusters(make_agent: MakeAgent) -> AsyncIterator[Clusters]:
    made = Clusters(make_agent)
    yield made
    for at in list(made.running):
        await made.end(at)


async def test_the_first_controller_that_answers_is_joined_and_the_next_when_it_is_gone(
    clusters: Clusters, make_app: Callable[..., App], caplog: pytest.LogCaptureFixture
) -> None:
    await clusters.start(1)
    daemon = await clusters.agent()
    link = daemon.agent.controller
    assert any(clusters.addresses[0] in r.getMessage() for r in caplog.records), "which address failed"
    await register(daemon, make_app())
    await handlers.dedup(daemon.agent, "s1")
    await until(lambda: clusters.knows(1) == (1, {"s1"}), "announced")

    await clusters.start(0)
    await clusters.end(1)
    await until(lambda: link.connected and clusters.knows(0) == (1, {"s1"}), "announced to the other")
    # What the node loses meanwhile, the second must not believe it to have when it is joined again.
    await handlers.restore(daemon.agent, "s1", eager=True)
    await handlers.purge(daemon.agent, "s1")
    await clusters.start(1)
    await clusters.end(0)
    await until(lambda: link.connected and clusters.knows(1)[1] == set(), "back")


async def test_a_controller_that_was_only_away_forgets_what_the_node_had_before_it_went_elsewhere(
    clusters: Clusters, make_app: Callable[..., App], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lease lasts, so to it the node never was away."""
    await clusters.start(0)
    await clusters.start(1)
    daemon = await clusters.agent()
    link = daemon.agent.controller
    await register(daemon, make_app())
    await handlers.dedup(daemon.agent, "s1")
    await until(lambda: clusters.knows(0) == (1, {"s1"}), "announced")

    async def silent(*arguments: object, **more: object) -> object:
        raise ControllerUnreachableError("away for a moment", object=clusters.addresses[0])

    with monkeypatch.context() as patch:
        patch.setattr(link._clients[0], "heartbeat", silent)
        await until(lambda: link.connected and clusters.knows(1) == (1, {"s1"}), "with the second")
    await handlers.restore(daemon.agent, "s1", eager=True)
    await handlers.purge(daemon.agent, "s1")
    (base_id,) = daemon.agent.bases.bases
    assert await retire_base(daemon.agent, base_id)
    assert clusters.knows(0) == (1, {"s1"}), "what it still believes"
    await clusters.end(1)
    await until(lambda: link.connected and clusters.knows(0) == (0, set()), "back")


async def test_a_controller_that_refuses_the_node_is_not_passed_by(
    clusters: Clusters, caplog: pytest.LogCaptureFixture
) -> None:
    await clusters.start(0)
    await clusters.start(1)
    other = NodeEndpoints("n0", "127.0.0.1:1", store="another.s")
    clusters.running[0].state.membership.join(other, "i", 0, clusters.running[0].clock.now_s())
    daemon = await clusters._make_agent("n0", controllers=tuple(clusters.addresses))
    await until(lambda: "refuses this node" in caplog.text, "refused")
    assert clusters.addresses[0] in caplog.text
    with pytest.raises(ControllerUnreachableError, match=", ".join(clusters.addresses)):
        await daemon.agent.controller.lookup("d", b"", 8)
    assert clusters.running[1].state.membership.alive_count() == 0
