"""A whole cluster in one process, on the time of a SimLoop: one controller and agents on machines that are made up.

What runs is the real thing: the controller's handlers and registry, the agents' ops, timers, policy, admission, journals,
slabs, sandbox files and page servers. Made up are the network between them (links), the sandboxes (machine, driver), the
threads (work), chance and time. So the same seed gives the same course of events, to the microsecond.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import random
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from medes import native
from medes.agent.agent import Agent
from medes.agent.api import handlers
from medes.agent.api.registration import Registration
from medes.agent.controller_client import ControllerClient
from medes.agent.journal.journal import Journal
from medes.agent.journal.journal_writer import JournalWriter
from medes.agent.journal.store_identity import store_identity
from medes.agent.lifecycle.timers import Timers
from medes.agent.node.observer import Observer
from medes.agent.node.pressure import Pressure
from medes.agent.node.workers import Workers
from medes.agent.ops import restore_op
from medes.agent.peer_api import page_leases
from medes.agent.peer_api.peer_handlers import PageAccessTable
from medes.agent.peer_api.peer_servicer import PeerServicer
from medes.agent.peer_client import PEER_TIMEOUT_S, PageAccess, PeerClient
from medes.agent.recovery import recovery
from medes.agent.store.folder_lock import Owner
from medes.agent.store.store_key import use_store_key
from medes.chance import Chance
from medes.config import AgentSettings, ControllerSettings
from medes.controller.api.servicer import ControllerServicer
from medes.controller.members import expiry
from medes.controller.registry.store import MemoryStore
from medes.controller.state import ControllerState
from medes.drivers.registry import Drivers
from medes.errors import ControllerUnreachableError, PeerUnreachableError
from medes.limits import RPC_TIMEOUT_S
from medes.sim.driver import Costs, SimDriver
from medes.sim.links import Link, Network
from medes.sim.loop import SimClock
from medes.sim.machine import Machine
from medes.sim.work import Inline, SimWorkers
from medes.types import Activity, NodeEndpoints, SandboxState

CONTROLLER = "controller"
LATENCY_S = 0.000_1
MEMORY_BYTES = 16 << 30  # of a node
CALM = Pressure(False, "calm")


class SeededChance(Chance):
    """The same numbers again for the same seed."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed)

    def bits(self, count: int) -> int:
        return self._random.getrandbits(count)

    def hex(self, size_bytes: int) -> str:
        return self._random.randbytes(size_bytes).hex()


@dataclass(frozen=True, slots=True)
class Happened:
    """A sandbox changed its state."""

    at_s: float
    node: str
    sandbox_id: str
    state: SandboxState
    reason: str


class SimNode:
    """A machine, and the agent on it while there is one. Use from the cluster's loop."""

    def __init__(self, cluster: SimCluster, name: str, folder: Path) -> None:
        self.name = name
        self.machine = Machine()
        self.agent: Agent | None = None
        self._cluster = cluster
        self._starts = 0
        self._settings = AgentSettings(
            node_id=name,
            controllers=(f"{CONTROLLER}:1",),
            insecure_plaintext=True,
            state_dir=str(folder / f"state-{name}"),
            shm_dir=str(folder / f"shm-{name}"),
            **{"memory_limit_bytes": MEMORY_BYTES, **cluster.settings},
        )
        for path in (self._settings.state_dir, self._settings.shm_dir):
            Path(path).mkdir(mode=0o700)

    async def start(self) -> None:
        """Starts an agent, which takes back what the one before left."""
        settings, cluster = self._settings, self._cluster
        self._starts += 1
        state_dir = Path(settings.state_dir)
        use_store_key(state_dir, settings.shm_path)
        owner = Owner(self.name, os.getpid(), str(state_dir))
        journal = JournalWriter(Journal(state_dir / "journal", owner), Inline())
        driver = SimDriver(self.machine, cluster.clock, cluster.costs)
        link = Link(
            cluster.network, self.name, CONTROLLER, CONTROLLER, ControllerUnreachableError, RPC_TIMEOUT_S
        )
        agent = self.agent = Agent(
            settings,
            journal,
            Drivers({driver.name: driver}, {}),
            controllers=[ControllerClient(f"{CONTROLLER}:1", calls=link)],
            make_reader=_reader,
            clock=cluster.clock,
            observer=Observer(),
            workers=cast(Workers, SimWorkers()),
            make_peer=self._peer,
            chance=SeededChance(f"{cluster.seed} {self.name} {self._starts}"),
        )
        agent.on_taken_back = functools.partial(restore_op.go_on, agent)
        self._server = native.PageServer("127.0.0.1", 0)
        pages = PageAccessTable(agent, self._server, self._server.address)
        store = await store_identity(journal, state_dir, agent.chance)
        agent.endpoints = NodeEndpoints(self.name, f"{self.name}:1", pages.address, ("tcp",), store)
        self._tasks = [cluster.loop.create_task(_told(cluster, self.name, agent), name=f"watch {self.name}")]
        await asyncio.sleep(0)  # the watch begins
        await pages.start()
        await recovery.recover(agent)
        pages.grant_again()
        cluster.network.serve(self.name, "peer", PeerServicer(agent, pages))
        self._tasks += [
            cluster.loop.create_task(work, name=f"{self.name} {what}")
            for what, work in (
                ("controller link", agent.controller.run()),
                ("timers", Timers(agent, lambda used, limit: CALM, settings.idle_period_s / 4).run()),
                ("page leases", page_leases.run(agent, pages)),
                ("page tokens", agent.peers.renewal.run()),
            )
        ]
        agent.spawn(recovery.reconcile_pins(agent), "reconcile pins")

    async def kill(self) -> None:
        """As SIGKILL does: what was under way is under way no more, programs and files stay."""
        agent = self.agent
        if agent is None:
            return
        self._cluster.network.end(self.name)
        self.agent = None
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await agent.drain(0.0)
        await agent.peers.close()
        self._server.close()
        agent.close_executors()
        agent.journal.close()

    def _peer(self, node_id: str, address: str) -> PeerClient:
        link = Link(self._cluster.network, self.name, node_id, "peer", PeerUnreachableError, PEER_TIMEOUT_S)
        return PeerClient(self.name, node_id, address, calls=link)

    @property
    def running(self) -> Agent:
        """The agent. AssertionError while there is none."""
        assert self.agent is not None, f"{self.name} has no agent"
        return self.agent


class SimCluster:
    """Made inside medes.sim.loop.run(); `start`, then `stop`."""

    def __init__(
        self,
        clock: SimClock,
        folder: Path,
        *,
        nodes: int = 3,
        seed: int = 0,
        costs: Costs | None = None,
        latency_s: float = LATENCY_S,
        **settings: Any,
    ) -> None:
        """`folder` is empty, on a memory file system; `settings` are those of all agents."""
        self.clock = clock
        self.loop = asyncio.get_running_loop()
        self.seed = seed
        self.costs = costs or Costs()
        self.settings = settings
        self.network = Network(latency_s)
        self.trace: list[Happened] = []
        self.controller_settings = ControllerSettings()
        self.nodes = {f"n{i}": SimNode(self, f"n{i}", folder) for i in range(nodes)}
        self._executor: Executor = Inline()
        self._expiry: asyncio.Task[None] | None = None
        self._controller_starts = 0

    async def start(self) -> None:
        self.start_controller()
        for node in self.nodes.values():
            await node.start()
        for node in self.nodes.values():
            await node.running.controller.joined_once.wait()

    def start_controller(self) -> None:
        """A new one, that knows nothing yet; in the place of the one before."""
        self.stop_controller()
        self._controller_starts += 1
        chance = SeededChance(f"{self.seed} {CONTROLLER} {self._controller_starts}")
        self.controller = ControllerState(self.controller_settings, MemoryStore(), chance)
        servicer = ControllerServicer(self.controller, self._executor, self.clock.now_s)
        self.network.serve(CONTROLLER, CONTROLLER, servicer)
        self._expiry = self.loop.create_task(self._expire())

    def stop_controller(self) -> None:
        """As SIGKILL does. Idempotent."""
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        self.network.end(CONTROLLER)

    async def _expire(self) -> None:
        while True:
            await self.clock.sleep(self.controller_settings.lease_ms / 4000)
            expiry.expire(self.controller, self.clock.now_s())

    async def register(self, node: str, function: str, name: str, page_count: int = 64, **more: Any) -> str:
        """Starts a program there and registers it; its sandbox has its name. Raises what Register does."""
        where = self.nodes[node]
        where.machine.run(name, function, page_count)
        registration = Registration(sandbox_id=name, function=function, subject=name, driver="sim", **more)
        return (await handlers.register(where.running, registration)).sandbox_id

    async def request(self, node: str, sandbox_id: str, takes_s: float = 0.01) -> float:
        """One request to a sandbox: how long it waited for it to run, in seconds. Raises what Activity does."""
        agent, program = self.nodes[node].running, self.nodes[node].machine.programs[sandbox_id]
        asked_s = self.clock.now_s()
        await handlers.notify_activity(agent, sandbox_id, Activity.BEGUN)
        waited_s = self.clock.now_s() - asked_s
        await asyncio.sleep(takes_s)
        program.requests += 1
        await handlers.notify_activity(agent, sandbox_id, Activity.ENDED)
        return waited_s

    async def stop(self) -> None:
        for node in self.nodes.values():
            await node.kill()
        self.stop_controller()


async def _told(cluster: SimCluster, node: str, agent: Agent) -> None:
    with contextlib.suppress(asyncio.CancelledError):
        async for event in agent.watch.events():
            view = event.sandbox
            cluster.trace.append(
                Happened(cluster.clock.now_s(), node, view.sandbox_id, view.state, event.reason)
            )


def _reader(peer: NodeEndpoints, access: PageAccess, wake: int) -> native.PageReader:
    return native.tcp_reader(access.page_address, access.token, wake=wake)
