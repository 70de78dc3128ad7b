"""The agent process: builds the parts, recovers, serves, and ends in order.

SIGTERM and SIGINT leave dedup'd sandboxes dedup'd (their faults wait for the next agent); with `purge_on_exit` every
sandbox is restored or ended and every file of this agent removed.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import resource
import shutil
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from medes import native
from medes.agent.agent import Agent
from medes.agent.api import handlers
from medes.agent.api.servicer import AGENT_SERVICE, API_ACCESS, AgentServicer
from medes.agent.api.user_servicer import UserServicer
from medes.agent.controller_client import ControllerClient
from medes.agent.journal.journal import Journal
from medes.agent.journal.journal_writer import JournalWriter
from medes.agent.journal.store_identity import store_identity
from medes.agent.lifecycle.timers import DriverEvents, Timers
from medes.agent.metrics import AgentObserver
from medes.agent.node import rights
from medes.agent.ops import purge_op, restore_op, touches
from medes.agent.ops.base_op import retire_unneeded
from medes.agent.peer_api import page_leases
from medes.agent.peer_api.peer_handlers import PageAccessTable
from medes.agent.peer_api.peer_servicer import PEER_ACCESS, PEER_SERVICE, PeerServicer
from medes.agent.peer_client import PageAccess
from medes.agent.peers.peers import ReaderFactory
from medes.agent.recovery import recovery
from medes.agent.store.folder_lock import LOCK_NAME, FolderLock, Owner
from medes.agent.store.store_key import KEY_NAME, forget_store_key, use_store_key
from medes.certs.identity import Identity
from medes.certs.parties import Party, Role, node_server_name
from medes.certs.sources import daemon_identity, keep_fresh, warn_of_plaintext
from medes.chance import Chance
from medes.config import AgentSettings, group_id
from medes.drivers.registry import make_drivers
from medes.errors import InvalidArgumentError, MedesError
from medes.folders import make_private_folder, make_socket_folder
from medes.limits import API_REQUEST_BYTES_MAX
from medes.obs.metrics_server import MetricsServer
from medes.obs.rpc_metrics import RpcMetrics
from medes.obs.systemd import notify
from medes.places import user_socket_beside
from medes.rpc.address import is_loopback, is_wildcard, parse_address
from medes.rpc.gen import agent_pb2_grpc, peer_pb2_grpc
from medes.rpc.server import RpcServer
from medes.rpc.user_socket import UserSocket
from medes.transport.choice import Transports, open_transports
from medes.transport.tcp.streams import automatic_streams
from medes.types import NodeEndpoints, NodeStatus, PurgeCause
from medes.types import SandboxState as S

log = logging.getLogger(__name__)

STOP_GRACE_S = 5.0
USERS_SOCKET = "users.sock"  # in shm_dir, where nobody else gets
TICK_S = 0.25
JOURNAL_FILES = ("journal", "journal.lock")  # the lock goes last
OWN_FILES = (*JOURNAL_FILES, LOCK_NAME, KEY_NAME)
OTHER_FOLDERS = (
    "run as root, or name folders of your own: --state-dir, --shm-dir, --cluster-dir, --listen unix:/…"
)


def _use_all_descriptors() -> None:
    """The hard limit becomes the soft one: a dedup'd process takes two descriptors here, a forked child one more."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class AgentDaemon:
    """One agent of one node. `start`, then `stop`; both from the same event loop."""

    def __init__(self, settings: AgentSettings, *, purge_on_exit: bool = False) -> None:
        self.settings = settings
        self.purge_on_exit = purge_on_exit
        self.agent: Agent
        self.recovered: recovery.Recovered
        self.registry = CollectorRegistry()
        rpc_metrics = self._rpc_metrics = RpcMetrics(self.registry)
        self._observe = rpc_metrics.observe
        self._servicer: AgentServicer | None = None
        self._api = RpcServer(
            observer=rpc_metrics.observe, access=API_ACCESS, receive_bytes_max=API_REQUEST_BYTES_MAX
        )
        self._user_api = RpcServer(observer=rpc_metrics.observe, receive_bytes_max=API_REQUEST_BYTES_MAX)
        self._users: UserSocket | None = None
        self._peer = RpcServer(observer=rpc_metrics.observe, access=PEER_ACCESS)
        self.identity: Identity | None = None
        self._shown: native.TlsIdentity | None = None
        self._believed = b""  # the CA certificates that it goes by
        self._metrics: MetricsServer | None = None
        self.peer_address = ""
        self.tcp_address = ""
        self.metrics_address = ""
        self._journal: JournalWriter | None = None
        self._shm_lock: FolderLock | None = None
        self._events: DriverEvents | None = None
        self._pages: PageAccessTable | None = None
        self._transports = Transports()
        self._loops: list[asyncio.Task[None]] = []
        self._made: list[Path] = []  # folders and files that were not there before
        self._store = ""
        self._serves = False
        self._stopped = False

    async def start(self) -> None:
        """Recovers and serves. Raises io, permission_denied, already_exists (another agent), unsupported (transport);
        stop() then removes what this start has made."""
        settings = self.settings
        _use_all_descriptors()
        transports = self._transports = open_transports(settings)
        log.info("base pages of peers are read over %s", transports)
        # What lies there is memory of sandboxes, and what is put there comes into them.
        for path in (Path(settings.state_dir), settings.shm_path):
            make_private_folder(path, self._made, other=OTHER_FOLDERS)
        identity = self.identity = self._make_identity()
        shown = self._shown = _shown(identity) if identity else None
        if identity is not None:
            self._believed = identity.pem.ca
            self._rpc_metrics.watch_certificate(lambda: identity.expires_s)
        self._lock_shm(Owner(settings.node, os.getpid(), str(Path(settings.state_dir).resolve())))
        journal = self._journal = self._open_journal(Path(settings.state_dir))
        self._use_store_key()
        self._store = await store_identity(journal, Path(settings.state_dir), Chance())
        observer = AgentObserver(self.registry)
        self.agent = self._make_agent(journal, _reader_factory(settings, shown), observer)
        pages = self._pages = _page_server(self.agent, transports, shown)
        observer.watch_pages(self.agent, pages)
        self._events = DriverEvents(self.agent)
        self._bind(pages)
        # Peers may be waiting for our base pages, so the page server runs before our own sandboxes are taken back.
        await pages.start()
        await self._peer.start()
        self.recovered = await recovery.recover(self.agent)
        pages.grant_again()
        self._events.start()
        await self._api.start()
        if settings.user_socket:
            await self._serve_users(Path(parse_address(settings.listen).path))
        if settings.metrics_address:
            self._metrics = MetricsServer(settings.metrics_address, self.registry)
            self.metrics_address = self._metrics.address
        self._begin_loops(pages)
        self.agent.spawn(recovery.reconcile_pins(self.agent), "reconcile pins")
        self._serves = True
        at = self.agent.endpoints
        log.info(
            "agent %s serves %s, peers at %s, base pages at %s over %s",
            *(settings.node, settings.listen, at.grpc_address, at.page_address, " and ".join(at.transports)),
        )

    def _make_agent(
        self, journal: JournalWriter, make_reader: ReaderFactory, observer: AgentObserver
    ) -> Agent:
        settings, identity = self.settings, self.identity
        drivers = make_drivers(settings)
        agent = Agent(
            settings,
            journal,
            drivers,
            controllers=[ControllerClient(address, identity) for address in settings.controllers],
            make_reader=make_reader,
            observer=observer,
            transports=self._transports,
            identity=identity,
        )
        agent.on_taken_back = functools.partial(restore_op.go_on, agent)
        observer.watch(agent)
        for name, lacks in drivers.missing.items():
            for what, how in lacks.items():
                log.warning("%s driver: %s is missing: %s", name, what, how)
        if "live" in drivers.running and (limit := native.missing_seccomp_right())[0]:
            log.warning("live driver: no sandbox with a seccomp filter can be dedup'd: %s: %s", *limit)
        return agent

    def _begin_loops(self, pages: PageAccessTable) -> None:
        agent, identity = self.agent, self.identity
        work: list[tuple[str, Coroutine[Any, Any, None]]] = [
            ("controller link", agent.controller.run()),
            ("timers", Timers(agent, tick_s=self._tick_s()).run()),
            ("page leases", page_leases.run(agent, pages)),
            ("page tokens", agent.peers.renewal.run()),
            *((f"transport {t.name}", t.run()) for t in self._transports.running),
        ]
        if identity is not None:
            work.append(("certificates", keep_fresh(identity, self._show_anew)))
        self._loops = [asyncio.create_task(loop, name=name) for name, loop in work]

    def _make_identity(self) -> Identity | None:
        """What this node shows of itself; None: nothing, by `insecure_plaintext`."""
        settings = self.settings
        party = Party(Role.NODE, settings.node)
        if settings.insecure_plaintext:
            warn_of_plaintext(str(party))
            return None
        hosts = [parse_address(a, allow_port_zero=True).host for a in (settings.listen_tcp,) if a]
        return daemon_identity(settings.tls, settings.cluster_path, party, hosts)

    def _show_anew(self, identity: Identity) -> None:
        if self._shown is None or self._pages is None:
            return
        pem, before = identity.pem, self._believed
        self._shown.replace(pem.certificate, pem.private_key, pem.ca)
        self._believed = pem.ca
        for server in (self._api, self._peer):
            server.look_again()
        self.agent.peers.renewal.reconnect_all()
        if pem.ca != before:
            self._pages.end_connections()

    def _lock_shm(self, owner: Owner) -> None:
        """What lies in shm_dir is one agent's: another would not know what it is for."""
        path = self.settings.shm_path / LOCK_NAME
        absent = [] if path.exists() else [path]
        self._shm_lock = FolderLock(path, "shm_dir", owner)
        self._made += absent  # only now, under its lock

    def _open_journal(self, folder: Path) -> JournalWriter:
        absent = [p for p in (folder / name for name in JOURNAL_FILES) if not p.exists()]
        owner = Owner(self.settings.node, os.getpid(), str(folder.resolve()))
        journal = Journal(folder / "journal", owner)
        self._made += absent  # only now, under its lock: they may be another agent's as well
        return JournalWriter(journal)

    def _use_store_key(self) -> None:
        folders = Path(self.settings.state_dir), self.settings.shm_path
        self._made += use_store_key(*folders)

    def _tick_s(self) -> float:
        return min(TICK_S, max(0.05, self.settings.idle_period_s / 4))

    def _bind(self, pages: PageAccessTable) -> None:
        settings, agent = self.settings, self.agent
        self._servicer = AgentServicer(agent, self._observe)
        agent_pb2_grpc.add_AgentServiceServicer_to_server(self._servicer, self._api.server)
        self._api.add_service(AGENT_SERVICE)
        make_socket_folder(Path(parse_address(settings.listen).path).parent, self._made, other=OTHER_FOLDERS)
        mode, group = _who_may_open(settings)
        self._api.bind(settings.listen, unix_mode=mode, group=group)
        if settings.listen_tcp:
            self.tcp_address = str(self._api.bind(settings.listen_tcp, self.identity))
        peer_pb2_grpc.add_PeerServiceServicer_to_server(PeerServicer(agent, pages), self._peer.server)
        self._peer.add_service(PEER_SERVICE)
        bound = self.peer_address = str(self._peer.bind(settings.peer_address, self.identity))
        agent.endpoints = NodeEndpoints(
            agent.node_id,
            settings.peer_advertise or bound,
            pages.address,
            ("tcp", *(t.name for t in self._transports.running)),
            self._store,
        )
        _refuse_local_addresses(settings, agent.endpoints)

    async def _serve_users(self, main: Path) -> None:
        inner = self.settings.shm_path / USERS_SOCKET
        users = self._users = UserSocket(Path(user_socket_beside(str(main))), inner)
        agent_pb2_grpc.add_AgentServiceServicer_to_server(
            UserServicer(self.agent, users), self._user_api.server
        )
        self._user_api.add_service(AGENT_SERVICE)
        self._user_api.bind(f"unix:{inner}")
        await self._user_api.start()
        users.start()

    def status(self) -> NodeStatus:
        return handlers.node_status(self.agent)

    # --- end -----------------------------------------------------------------------------------------------
    async def stop(self) -> None:
        """Ends ops, lets go of dedup'd sandboxes, stops serving. Idempotent."""
        if self._stopped:
            return
        self._stopped = True
        if not hasattr(self, "agent"):  # start failed before there was anything to end
            self._take_back_start()
            if self._journal is not None:
                self._journal.close()
            self._unlock_shm()
            return
        agent = self.agent
        for task in self._loops[1:]:  # no timer starts anything any more; heartbeats go on
            task.cancel()
        for entry in agent.entries.values():
            if entry.cancel is not None:
                entry.cancel.cancel()
        if self.purge_on_exit:
            await self._purge_all()
        if self._serves:
            await self._retire_bases()
        agent.ending.set()
        agent.watch.close()
        if self._servicer is not None:
            self._servicer.end_streams()
        if self._users is not None:
            await self._users.stop()
            await self._user_api.stop(STOP_GRACE_S)
        await self._api.stop(STOP_GRACE_S)
        await agent.drain(STOP_GRACE_S)
        await agent.controller.leave()
        for task in self._loops:
            task.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        if self._events is not None:
            self._events.stop()
        await touches.learn_all(agent)
        # While peers can still be read: forked children get their pages first, the rest waits for the next agent.
        for driver in agent.drivers.running.values():
            await agent.in_restores(driver.close)
        await self._peer.stop(STOP_GRACE_S)
        await agent.peers.close()
        await agent.controller.close()
        if self._pages is not None:
            self._pages.close()
        if self._metrics is not None:
            self._metrics.close()
        agent.close_executors()
        self._take_back_start()
        agent.journal.close()
        log.info("agent %s has ended; %s", agent.node_id, _left(agent))
        if self.purge_on_exit:
            self._remove_files()
        self._unlock_shm()

    def _unlock_shm(self) -> None:
        if self._shm_lock is not None:
            self._shm_lock.close()

    def _take_back_start(self) -> None:
        """Removes what a start that failed has made, before the journal's lock is let go of: files that it found are
        another start's to recover from."""
        if self._serves:
            return
        for path in (p for p in self._made if p.name in OWN_FILES):
            path.unlink(missing_ok=True)
        folders = [p for p in self._made if p.name not in OWN_FILES]
        for path in sorted(folders, key=lambda p: len(p.parts), reverse=True):
            with contextlib.suppress(OSError):  # not empty: somebody else's by now
                path.rmdir()

    async def _retire_bases(self) -> None:
        """Nobody would come back for those that no sandbox here wants and nobody pins."""
        try:
            await retire_unneeded(self.agent, 0.0)
        except MedesError as error:
            log.warning("bases are left: %s", error)

    async def _purge_all(self) -> None:
        results = await asyncio.gather(
            *(
                purge_op.purge(self.agent, entry, "the agent ends", PurgeCause.ASKED)
                for entry in list(self.agent.entries.values())
            ),
            return_exceptions=True,
        )
        for error in results:
            if isinstance(error, BaseException):
                log.warning("purging: %s", error)

    def _remove_files(self) -> None:
        """Unless somebody may still need them: a sandbox that could not be restored, another node's sandboxes. Files that
        the agent does not know are removed by command only."""
        agent = self.agent
        held = [e.id for e in agent.entries.values() if e.state in (S.DEDUPING, S.DEDUP, S.RESTORING, S.LOST)]
        if held:
            log.error("not restored, files kept: %s", ", ".join(held))
        pinned = [b for b in agent.bases.bases.values() if agent.pins.is_pinned(b.base_id)]
        if pinned:
            log.error("%d bases are kept: sandboxes of other nodes need them", len(pinned))
        for base in (b for b in agent.bases.bases.values() if b not in pinned):
            base.slab.unlink()
        if held or pinned or agent.orphans:
            return
        forget_store_key(Path(self.settings.state_dir), self.settings.shm_path)
        (self.settings.shm_path / LOCK_NAME).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.settings.shm_path.rmdir()
        for name in (*JOURNAL_FILES, "journal.new"):
            (Path(self.settings.state_dir) / name).unlink(missing_ok=True)
        shutil.rmtree(Path(self.settings.state_dir) / "working-sets", ignore_errors=True)
        with contextlib.suppress(OSError):
            Path(self.settings.state_dir).rmdir()


def _left(agent: Agent) -> str:
    """What the next agent finds. A sandbox that was not taken back has its file, and so has one that could not be read."""
    waiting = sum(
        e.evicted is not None or e.pending is not None or e.state is S.DEDUPING
        for e in agent.entries.values()
    )
    unread = sum(Path(path).suffix == ".medes" for path in agent.orphans)
    told = f"dedup'd sandboxes that wait for the next one: {waiting}"
    return told + (f", and files of such that could not be read: {unread}" if unread else "")


def _refuse_local_addresses(settings: AgentSettings, endpoints: NodeEndpoints) -> None:
    """Raises invalid_argument where peers would be told an address under which they cannot reach this node: a
    controller is on another machine, or "all addresses" is what it would be."""
    if not settings.controllers or settings.advertise_local:
        return
    controllers = map(parse_address, settings.controllers)
    remote = any(not c.is_unix and not is_loopback(c.host) for c in controllers)
    for address, setting in (
        (endpoints.grpc_address, "peer_advertise"),
        (endpoints.page_address, "page_advertise_host"),
    ):
        host = parse_address(address).host
        if is_wildcard(host) or (remote and is_loopback(host)):
            raise InvalidArgumentError(
                f"other nodes would be told {address}, and cannot reach it",
                object=f"agent.{setting}",
                hint="an address of this machine; advertise_local when all nodes are on this one",
            )


def _who_may_open(settings: AgentSettings) -> tuple[int, int]:
    """Mode and group of the main socket; a group below 0 is the agent's own."""
    if not settings.listen_group:
        return settings.listen_mode, -1
    return settings.listen_mode | 0o060, group_id(settings.listen_group)


def _shown(identity: Identity) -> native.TlsIdentity:
    pem = identity.pem
    return native.TlsIdentity(pem.certificate, pem.private_key, pem.ca)


def _page_server(agent: Agent, transports: Transports, shown: native.TlsIdentity | None) -> PageAccessTable:
    settings = agent.settings
    server = native.PageServer(settings.page_host, settings.page_port, identity=shown)
    address = server.address
    if settings.page_advertise_host:
        address = f"{settings.page_advertise_host}:{address.rpartition(':')[2]}"
    return PageAccessTable(agent, server, address, transports.running)


def _reader_factory(settings: AgentSettings, shown: native.TlsIdentity | None) -> ReaderFactory:
    streams = settings.page_streams or automatic_streams(len(os.sched_getaffinity(0)))

    def make(peer: NodeEndpoints, access: PageAccess, wake: int) -> native.PageReader:
        return native.tcp_reader(
            access.page_address,
            access.token,
            streams=streams,
            identity=shown,
            server_name=node_server_name(peer.node_id),
            wake=wake,
        )

    return make


async def run(
    settings: AgentSettings, *, purge_on_exit: bool = False, announce: Callable[[str], None] = print
) -> None:
    """Serves until SIGTERM or SIGINT. `announce` is told one line with the addresses once calls are answered."""
    rights.restrict(settings)
    daemon = AgentDaemon(settings, purge_on_exit=purge_on_exit)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def told_to_stop(name: str) -> None:
        log.info("%s: the agent %s", name, "ends, and what it holds with it" if purge_on_exit else "ends")
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told_to_stop, number.name)
    try:
        await daemon.start()
        announce(
            f"medes agent {settings.node} listening on {settings.listen}, peers at {daemon.peer_address}"
        )
        notify("READY=1")
        await stop.wait()
        notify("STOPPING=1")
    finally:
        await daemon.stop()
