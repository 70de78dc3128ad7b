"""The controller process: server, lease timer, metrics, graceful end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from prometheus_client import CollectorRegistry

from medes import plugins
from medes.certs.identity import Identity
from medes.certs.parties import Party, Role
from medes.certs.sources import daemon_identity, keep_fresh, warn_of_plaintext
from medes.clock import Clock
from medes.config import ControllerSettings
from medes.controller.api.access import ACCESS, SERVICE_NAME
from medes.controller.api.servicer import ControllerServicer
from medes.controller.members import expiry
from medes.controller.registry.store import RegistryStore, StoreClass
from medes.controller.state import ControllerState
from medes.obs.controller_metrics import ControllerMetrics
from medes.obs.metrics_server import MetricsServer
from medes.obs.rpc_metrics import RpcMetrics
from medes.obs.systemd import notify
from medes.plugins import Kind
from medes.rpc.address import parse_address
from medes.rpc.gen import controller_pb2_grpc
from medes.rpc.server import RpcServer

log = logging.getLogger(__name__)

STOP_GRACE_S = 5.0


def open_store(settings: ControllerSettings) -> RegistryStore:
    """The store the settings name. Raises unsupported or store_unreachable where it cannot be had."""
    kind: StoreClass = plugins.load(Kind.REGISTRY_STORE, settings.store.partition("://")[0])
    return kind.open(settings.store)


class Controller:
    """A running controller inside an event loop. stop() is idempotent; the store is closed with it."""

    def __init__(
        self,
        settings: ControllerSettings,
        *,
        store: RegistryStore | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.settings = settings
        self.clock = clock or Clock()
        self.store = store or open_store(settings)
        self.state = ControllerState(settings, self.store)
        self.registry = CollectorRegistry()
        self.address = ""
        self.metrics_address = ""
        self._executor = ThreadPoolExecutor(settings.lookup_threads, thread_name_prefix="registry")
        self._metrics: MetricsServer | None = None
        self._expiry: asyncio.Task[None] | None = None
        self._fresh: asyncio.Task[None] | None = None
        self._server: RpcServer | None = None
        ControllerMetrics(
            self.registry,
            self.state.statistics,
            self.state.directory.state_counts,
            lambda: self.state.cluster_bytes(self.clock.now_s()),
            lambda: self.state.domain_access.withheld,
        )

    async def start(self) -> None:
        """Listens and serves. Raises io when an address cannot be had."""
        identity = self._make_identity()
        metrics = RpcMetrics(self.registry)
        if identity is not None:
            metrics.watch_certificate(lambda: identity.expires_s)
        server = RpcServer(observer=metrics.observe, access=ACCESS)
        servicer = ControllerServicer(self.state, self._executor, self.clock.now_s)
        controller_pb2_grpc.add_ControllerServiceServicer_to_server(servicer, server.server)
        server.add_service(SERVICE_NAME)
        self.address = server.bind(self.settings.listen, identity).target
        if self.settings.metrics_address:
            self._metrics = MetricsServer(self.settings.metrics_address, self.registry)
            self.metrics_address = self._metrics.address
        await server.start()
        self._server = server
        self._expiry = asyncio.create_task(self._expire_for_ever())
        if identity is not None:
            self._fresh = asyncio.create_task(keep_fresh(identity, lambda _: server.look_again()))
        where = {
            "address": self.address,
            "metrics": self.metrics_address,
            "incarnation": self.state.incarnation,
        }
        log.info("controller listens", extra=where)

    def _make_identity(self) -> Identity | None:
        """What it shows of itself; None: nothing, on a unix socket or by `insecure_plaintext`."""
        settings = self.settings
        listen = parse_address(settings.listen, allow_port_zero=True)
        if listen.is_unix:
            return None
        party = Party(Role.CONTROLLER, "controller")
        if settings.insecure_plaintext:
            warn_of_plaintext("the controller")
            return None
        return daemon_identity(settings.tls, settings.cluster_path, party, [listen.host])

    async def _expire_for_ever(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self.clock.sleep(self.settings.lease_ms / 4000)
            try:
                await loop.run_in_executor(self._executor, expiry.expire, self.state, self.clock.now_s())
            except Exception:
                # The next round retries; a store that is away for a moment must not end the controller.
                log.exception("expiring silent nodes failed")

    async def stop(self) -> None:
        """Lets calls under way finish (up to STOP_GRACE_S), then closes everything."""
        for task in filter(None, (self._expiry, self._fresh)):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._expiry = self._fresh = None
        if self._server:
            await self._server.stop(STOP_GRACE_S)
            self._server = None
        if self._metrics:
            self._metrics.close()
            self._metrics = None
        self._executor.shutdown(wait=True)
        self.store.close()

    async def __aenter__(self) -> Controller:
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()


async def run(settings: ControllerSettings, announce: Callable[[str], None] = print) -> None:
    """Serves until SIGTERM or SIGINT. `announce` is told one line with the address once calls are answered."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with Controller(settings) as controller:
        announce(f"medes controller listening on {controller.address}")
        notify("READY=1")
        await stop.wait()
        notify("STOPPING=1")
        log.info("controller stops")
