"""What can be set, with defaults, bounds and one line of help each: docs/operations.md lists them."""

from __future__ import annotations

import dataclasses
import functools
import grp
import re
import socket
import typing
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from medes import plugins
from medes.certs.folder import cluster_folder
from medes.config.checks import (
    ALL_DOMAINS,
    check_dir,
    check_field,
    check_periods,
    parse_domains,
    setting,
)
from medes.errors import InvalidArgumentError
from medes.limits import (
    NODE_CHARS_WITH_USERS_MAX,
    PAGE_TOKEN_S_MAX,
    PERIOD_MS_MAX,
    PIDS_PER_SANDBOX_MAX,
    WORKING_SET_PAGES_MAX,
)
from medes.places import DEFAULT_AGENT_ADDRESS, DEFAULT_CONTROLLER_ADDRESS
from medes.plugins import Kind
from medes.rpc.address import parse_address
from medes.rpc.tls import TlsFiles

GIB = 1 << 30
DURATION_S_MAX = PERIOD_MS_MAX / 1000
LOG_LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True)
class Settings:
    """What both processes have."""

    SECTION: typing.ClassVar[str] = ""

    tls: TlsFiles = field(
        default=TlsFiles(),
        metadata={"help": "PEM files for all that goes over TCP, instead of the cluster folder"},
    )
    log_level: str = setting("info", "debug, info, warning or error", choices=LOG_LEVELS)
    log_json: bool = setting(False, "one JSON object per log line")
    metrics_address: str = setting(
        "", "host:port of the Prometheus endpoint; empty: none", address="optional"
    )

    cluster_dir: str = setting(
        "",
        "folder of the cluster's CA, where no tls files are named; empty: MEDES_CLUSTER_DIR, else /var/lib/medes/cluster",
        path="optional",
    )
    insecure_plaintext: bool = setting(
        False, "no TLS: whoever reaches a port is served and believed; for laboratories"
    )

    def check(self) -> None:
        """Raises invalid_argument that names the setting, what is wrong and what is allowed."""
        for f in dataclasses.fields(self):
            check_field(f"{self.SECTION}.{f.name}", getattr(self, f.name), f.metadata)
        self.tls.check()
        if self.insecure_plaintext and self.tls.enabled:
            raise InvalidArgumentError(
                "with tls files there is nothing plain", object=f"{self.SECTION}.insecure_plaintext"
            )

    @property
    def cluster_path(self) -> Path:
        return cluster_folder(self.cluster_dir)


@dataclass(frozen=True)
class FunctionOverrides:
    """Per-function settings; None means the agent's own."""

    idle_period_s: float | None = setting(
        None, "warm and idle this long → dedup", minimum=0.0, maximum=DURATION_S_MAX
    )
    keep_alive_period_s: float | None = setting(
        None, "warm and idle this long → purge, with purge_kills only", minimum=0.0, maximum=DURATION_S_MAX
    )
    keep_dedup_period_s: float | None = setting(
        None, "dedup'd this long → purge, with purge_kills only", minimum=0.0, maximum=DURATION_S_MAX
    )
    activity_lease_s: float | None = setting(
        None, "no request begun or ended for this long → idle again", minimum=1.0, maximum=DURATION_S_MAX
    )
    disabled: bool | None = setting(None, "never dedup or purge by timer")
    domain: str | None = setting(None, "dedup domain instead of the tenant", name=True)
    hold_frozen: bool | None = setting(None, "hold dedup'd sandboxes frozen: they wake only by Restore")
    fork_sharers_max: int | None = setting(
        None, "pages that more processes share since a fork stay", minimum=1, maximum=PIDS_PER_SANDBOX_MAX
    )
    touches_per_s_max: int | None = setting(
        None,
        "a dedup'd sandbox that touches more pages within a second is restored",
        minimum=0,
        maximum=WORKING_SET_PAGES_MAX,
    )


@dataclass(frozen=True)
class PeerOverrides:
    """What one other node may do here; None means what all may."""

    domains: str | None = setting(None, "domains whose bases it may pin and read here", domains=True)


@dataclass(frozen=True)
class AgentSettings(Settings):
    """Settings of `medes agent`."""

    SECTION: typing.ClassVar[str] = "agent"

    node_id: str = setting("", "name of this node in the cluster; empty: the host name", name="optional")
    controllers: tuple[str, ...] = setting(
        (DEFAULT_CONTROLLER_ADDRESS,),
        "host:port of each controller, with commas or as a list: the first that answers is joined; empty: none",
        addresses=True,
        was="controller",
    )
    listen: str = setting(DEFAULT_AGENT_ADDRESS, "the restore API's unix socket", address=True)
    listen_mode: int = setting(
        0o600, "file mode of the unix socket: who opens it commands every sandbox", mode=True
    )
    listen_group: str = setting(
        "", "group whose members may open the unix socket too; empty: listen_mode alone decides"
    )
    user_socket: bool = setting(
        False, "a second socket, for other users: for sandboxes of their own processes only"
    )
    user_sandboxes_max: int = setting(32, "sandboxes of one such user", minimum=1, maximum=100_000)
    user_bytes_max: int = setting(4 * GIB, "memory of one such user's sandboxes when registered", minimum=1)
    user_calls_max: int = setting(8, "calls of one such user under way", minimum=1, maximum=1024)
    listen_tcp: str = setting("", "host:port of the restore API over TCP; empty: none", address="optional")
    peer_address: str = setting("127.0.0.1:7071", "host:port of the peer service; port 0: any", address=True)
    peer_advertise: str = setting(
        "", "host:port peers reach the peer service at; empty: what it listens on", address="optional"
    )
    advertise_local: bool = setting(
        False, "advertise loopback or wildcard addresses although a controller is on another machine"
    )
    page_host: str = setting("127.0.0.1", "address the TCP page server listens on")
    page_port: int = setting(0, "port of the TCP page server; 0: any", minimum=0, maximum=65535)
    page_advertise_host: str = setting("", "host peers reach the page server at; empty: page_host")
    state_dir: str = setting("/var/lib/medes", "journal and working sets", path=True)
    shm_dir: str = setting(
        "",
        "base and sandbox files; empty: /dev/shm/medes-<node_id>, and a mark of state_dir where that is another than here",
        path="optional",
    )
    memory_limit_bytes: int = setting(
        0, "memory of all sandboxes and stores of this node; 0: no limit", minimum=0
    )
    base_store_limit_bytes: int = setting(4 * GIB, "base pages held here", minimum=0)
    patch_store_limit_bytes: int = setting(8 * GIB, "patches and tables held here", minimum=0)
    remote_index_limit_bytes: int = setting(
        256 << 20, "fingerprints kept of bases of other nodes; 0: none", minimum=0
    )
    remote_pages_limit_bytes: int = setting(
        256 << 20, "base pages of other nodes kept for the next restores; 0: none", minimum=0
    )
    idle_period_s: float = setting(
        60.0, "warm and idle this long → dedup", minimum=0.0, maximum=DURATION_S_MAX
    )
    keep_alive_period_s: float = setting(
        600.0, "warm and idle this long → purge, with purge_kills only", minimum=0.0, maximum=DURATION_S_MAX
    )
    keep_dedup_period_s: float = setting(
        900.0, "dedup'd this long → purge, with purge_kills only", minimum=0.0, maximum=DURATION_S_MAX
    )
    activity_lease_s: float = setting(
        3600.0, "no request begun or ended for this long → idle again", minimum=1.0, maximum=DURATION_S_MAX
    )
    policy: str = setting(
        "fixed",
        "decides when to dedup and when to purge; fixed: by the three periods",
        choices=lambda: plugins.names(Kind.POLICY),
    )
    driver: str = setting(
        "live",
        "for sandboxes that name none; image only measures and frees nothing",
        choices=lambda: plugins.names(Kind.DRIVER),
    )
    base_keep_period_s: float = setting(
        600.0,
        "a base that nobody pins and no sandbox here wants goes after this",
        minimum=0.0,
        maximum=DURATION_S_MAX,
    )
    restores_concurrent_max: int = setting(10, "restore ops at once", minimum=1, maximum=1024)
    restore_queue_deadline_ms: int = setting(10_000, "longest wait for a restore's turn", minimum=0)
    restore_slow_ms: int = setting(
        1000, "a restore that takes longer is explained by a log line; 0: none", minimum=0
    )
    dedups_concurrent_max: int = setting(1, "dedup ops at once", minimum=1, maximum=256)
    background_bytes_per_s: int = setting(0, "rate of the restore's background part; 0: no bound", minimum=0)
    fault_threads: int = setting(2, "threads that serve page faults", minimum=1, maximum=64)
    busy_cpu_ratio: float = setting(
        0.05,
        "share of a processor above which a sandbox whose runtime reports no requests counts as in use",
        minimum=0.0,
        maximum=1024.0,
    )
    busy_bytes_per_s: int = setting(
        64 << 10,
        "bytes on its connections above which a sandbox whose runtime reports no requests counts as in use",
        minimum=0,
    )
    fork_sharers_max: int = setting(
        1,
        "pages that more processes of a sandbox share since a fork stay, as a restore gives each a copy; 1: all stay",
        minimum=1,
        maximum=PIDS_PER_SANDBOX_MAX,
    )
    touches_per_s_max: int = setting(
        2048,
        "a dedup'd sandbox gets so many pages that it touches within a second, and sleeps on; with more it is restored; 0: with the first",
        minimum=0,
        maximum=WORKING_SET_PAGES_MAX,
    )
    transport: str = setting(
        "auto",
        "how base pages of peers are read; local: not at all, own bases only",
        choices=lambda: ("auto", "local", "tcp", *plugins.names(Kind.TRANSPORT)),
    )
    page_streams: int = setting(
        0,
        "TCP connections to a peer for one domain's pages; 0: by the number of processors",
        minimum=0,
        maximum=16,
    )
    rdma_devices: str = setting(
        "",
        "RDMA ports to use: device or device:port, with commas; empty: none with transport auto, all active ones with rdma",
    )
    page_lease_s: float = setting(
        180.0, "a node silent this long loses its access to pages here", minimum=1.0, maximum=DURATION_S_MAX
    )
    page_token_s: float = setting(
        600.0,
        "a node's page tokens and RDMA connections here end after one to two times this, and it gets new ones",
        minimum=1.0,
        maximum=PAGE_TOKEN_S_MAX,
    )
    peer_domains: str = setting(
        ALL_DOMAINS,
        "domains whose bases other nodes may pin and read here, with commas; *: all",
        domains=True,
    )
    samples_per_page: int = setting(
        8, "fingerprint samples of a page; the controller's value rules", minimum=1, maximum=16
    )
    hold_frozen: bool = setting(False, "hold dedup'd sandboxes frozen: they wake only by Restore")
    functions: Mapping[str, FunctionOverrides] = field(
        default_factory=dict, metadata={"help": "per-function overrides", "table": FunctionOverrides}
    )
    peers: Mapping[str, PeerOverrides] = field(
        default_factory=dict, metadata={"help": "per-node overrides", "table": PeerOverrides}
    )

    @property
    def node(self) -> str:
        """node_id, or the host name made fit for one."""
        return self.node_id or re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname()) or "node"

    @property
    def shm_path(self) -> Path:
        """shm_dir, or a folder for this node and state_dir: agents that differ in either do not meet in it."""
        if self.shm_dir:
            return Path(self.shm_dir)
        default = next(f.default for f in dataclasses.fields(self) if f.name == "state_dir")
        mark = zlib.crc32(str(Path(self.state_dir).resolve()).encode())
        own = "" if self.state_dir == default else f"-{mark:08x}"
        return Path(f"/dev/shm/medes-{self.node}{own}")

    def check(self) -> None:
        super().check()
        if not parse_address(self.listen).is_unix:
            raise InvalidArgumentError(
                "the restore API's first address is a unix socket",
                object="agent.listen",
                hint="use listen_tcp for TCP",
            )
        check_dir("agent.shm_dir", str(self.shm_path))
        if self.user_socket and len(self.node) > NODE_CHARS_WITH_USERS_MAX:
            raise InvalidArgumentError(
                "the names of users' domains end with node_id: too long for that",
                object="agent.node_id",
                hint=f"at most {NODE_CHARS_WITH_USERS_MAX} characters",
            )
        if self.listen_group:
            group_id(self.listen_group)
        check_periods(self.idle_period_s, self.keep_alive_period_s, "agent.keep_alive_period_s")
        for function, own in self.functions.items():
            if not own.disabled:
                filled = self.for_function(function)
                check_periods(
                    filled.idle_period_s or 0.0,
                    filled.keep_alive_period_s or 0.0,
                    f"agent.functions.{function}.keep_alive_period_s",
                )
        if (self.peers or self.peer_domains != ALL_DOMAINS) and self.insecure_plaintext:
            raise InvalidArgumentError(
                "without certificates a node may call itself by any name: this would keep nobody out",
                object="agent.peers" if self.peers else "agent.peer_domains",
                hint="not with insecure_plaintext",
            )

    def may_read(self, node_id: str, domain: str) -> bool:
        """Whether another node may pin and read this node's bases of a domain."""
        own = self.peers.get(node_id, PeerOverrides()).domains
        allowed = parse_domains(self.peer_domains if own is None else own)
        return ALL_DOMAINS in allowed or domain in allowed

    def for_function(self, function: str) -> FunctionOverrides:
        """The overrides of a function with the agent's own values filled in."""
        return self._for_functions.get(function) or self._for_all

    @functools.cached_property
    def _for_functions(self) -> dict[str, FunctionOverrides]:
        return {name: self._filled(own) for name, own in self.functions.items()}

    @functools.cached_property
    def _for_all(self) -> FunctionOverrides:
        return self._filled(FunctionOverrides())

    def _filled(self, own: FunctionOverrides) -> FunctionOverrides:
        filled = {
            name: getattr(self, name) if getattr(own, name) is None else getattr(own, name)
            for name in (
                "idle_period_s",
                "keep_alive_period_s",
                "keep_dedup_period_s",
                "activity_lease_s",
                "hold_frozen",
                "fork_sharers_max",
                "touches_per_s_max",
            )
        }
        return dataclasses.replace(own, disabled=bool(own.disabled), **filled)


@dataclass(frozen=True)
class ControllerSettings(Settings):
    """Settings of `medes controller`."""

    SECTION: typing.ClassVar[str] = "controller"

    listen: str = setting(DEFAULT_CONTROLLER_ADDRESS, "host:port or unix:/path; port 0: any", address=True)
    samples_per_page: int = setting(8, "fingerprint samples of a page, cluster-wide", minimum=1, maximum=16)
    heartbeat_interval_ms: int = setting(1000, "how often agents report", minimum=10, maximum=600_000)
    lease_ms: int = setting(5000, "silent this long: the node is dead", minimum=50, maximum=3_600_000)
    local_nodes: bool = setting(
        False, "take nodes of other machines that advertise loopback or wildcard addresses"
    )
    base_threshold: int = setting(40, "T: dedup'd sandboxes per base before a further base", minimum=1)
    base_reservation_s: float = setting(
        60.0,
        "how long one sandbox is given to become the base it was advised to",
        minimum=0.1,
        maximum=3600.0,
    )
    lookup_threads: int = setting(2, "threads for registry lookups", minimum=1, maximum=256)
    store: str = setting("memory", 'the registry: "memory" or "redis://host:port/db"')

    def check(self) -> None:
        super().check()
        if self.lease_ms < 2 * self.heartbeat_interval_ms:
            raise InvalidArgumentError(
                "a lease must outlast two heartbeats",
                object="controller.lease_ms",
                hint=f"at least {2 * self.heartbeat_interval_ms}",
            )
        if self.store.partition("://")[0] not in (known := plugins.names(Kind.REGISTRY_STORE)):
            raise InvalidArgumentError(
                "unknown store",
                object="controller.store",
                hint=f'"memory" or "redis://host:port/db"; there are {", ".join(known)}',
            )


def group_id(name: str) -> int:
    """The number of `listen_group`, a name or a number. Raises invalid_argument."""
    try:
        return int(name) if name.isascii() and name.isdigit() else grp.getgrnam(name).gr_gid
    except KeyError:
        raise InvalidArgumentError(f"no such group: {name!r}", object="agent.listen_group") from None
