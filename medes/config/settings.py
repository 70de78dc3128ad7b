"""Settings of controller and agent: defaults ← TOML file ← environment ← command line, checked as one.

A file has the tables [agent] and [controller]; `tls` and per-function overrides are tables inside them:

    [agent]
    controller = "10.0.0.1:7070"
    idle_period_s = 30
    memory_limit_bytes = "8GiB"
    [agent.tls]
    ca = "/etc/medes/ca.pem"
    [agent.functions.resize]
    keep_alive_period_s = 120
    [agent.peers.node-b]
    domains = "tenant-a, tenant-b"

Environment: MEDES_AGENT_<FIELD> and MEDES_CONTROLLER_<FIELD>, upper case; TLS fields as MEDES_AGENT_TLS_CA.
Durations carry their unit in the name (_s or _ms), sizes end in _bytes and may be written "512MiB".
"""

from __future__ import annotations

import dataclasses
import difflib
import grp
import math
import os
import re
import socket
import tomllib
import types
import typing
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from medes.certs.folder import cluster_folder
from medes.errors import InvalidArgumentError
from medes.limits import (
    NAME_CHARS_MAX,
    NODE_CHARS_WITH_USERS_MAX,
    PAGE_TOKEN_S_MAX,
    PIDS_PER_SANDBOX_MAX,
    SETTINGS_FILE_BYTES_MAX,
)
from medes.places import DEFAULT_AGENT_ADDRESS, DEFAULT_CONTROLLER_ADDRESS
from medes.rpc.address import parse_address
from medes.rpc.tls import TlsFiles

S = TypeVar("S", bound="Settings")

GIB = 1 << 30
DURATION_S_MAX = 365 * 86400.0
ALL_DOMAINS = "*"
DRIVERS = ("live", "image")
TRANSPORTS = ("auto", "local", "tcp", "rdma")
LOG_LEVELS = ("debug", "info", "warning", "error")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]i?B|B)?", re.IGNORECASE)
_MODE = re.compile(r"[67][06]0")
# What Kubernetes tells every container about a service that is called "medes-agent" or "medes-controller".
_SERVICE_LINK = re.compile(r"(SERVICE_(HOST|PORT.*)|PORT(_\d+_.*)?)")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_UNITS = {"B": 1, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "TB": 1000**4}
_UNITS |= {"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}


def setting(default: Any, help: str, **checks: Any) -> Any:
    """A settings field. Checks: minimum, maximum, choices, mode, address (True | "optional"), name, path, domains."""
    return field(default=default, metadata={"help": help, **checks})


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
            _check_field(f"{self.SECTION}.{f.name}", getattr(self, f.name), f.metadata)
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


@dataclass(frozen=True)
class PeerOverrides:
    """What one other node may do here; None means what all may."""

    domains: str | None = setting(None, "domains whose bases it may pin and read here", domains=True)


@dataclass(frozen=True)
class AgentSettings(Settings):
    """Settings of `medes agent`."""

    SECTION: typing.ClassVar[str] = "agent"

    node_id: str = setting("", "name of this node in the cluster; empty: the host name", name="optional")
    controller: str = setting(
        DEFAULT_CONTROLLER_ADDRESS, "host:port of the controller; empty: none", address="optional"
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
        False, "advertise loopback or wildcard addresses although the controller is on another machine"
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
    driver: str = setting(
        "live", "for sandboxes that name none; image only measures and frees nothing", choices=DRIVERS
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
    fork_sharers_max: int = setting(
        8,
        "pages that more processes of a sandbox share since a fork stay: a restore gives each a copy; 1: all stay",
        minimum=1,
        maximum=PIDS_PER_SANDBOX_MAX,
    )
    transport: str = setting(
        "auto", "how base pages of peers are read; local: not at all, own bases only", choices=TRANSPORTS
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
        _check_dir("agent.shm_dir", str(self.shm_path))
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
        own = self.functions.get(function, FunctionOverrides())
        filled = {
            name: getattr(self, name) if getattr(own, name) is None else getattr(own, name)
            for name in (
                "idle_period_s",
                "keep_alive_period_s",
                "keep_dedup_period_s",
                "activity_lease_s",
                "hold_frozen",
                "fork_sharers_max",
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
        if self.store != "memory" and not self.store.startswith(("redis://", "rediss://", "unix://")):
            raise InvalidArgumentError(
                "unknown store", object="controller.store", hint='"memory" or "redis://host:port/db"'
            )


def group_id(name: str) -> int:
    """The number of `listen_group`, a name or a number. Raises invalid_argument."""
    try:
        return int(name) if name.isascii() and name.isdigit() else grp.getgrnam(name).gr_gid
    except KeyError:
        raise InvalidArgumentError(f"no such group: {name!r}", object="agent.listen_group") from None


# --- checks ------------------------------------------------------------------------------------------------
def _check_field(name: str, value: Any, rules: Mapping[str, Any]) -> None:
    if value is None or "table" in rules:
        for key, overrides in (value or {}).items():
            _check_name(f"{name}.{key}", key)
            for f in dataclasses.fields(overrides):
                _check_field(f"{name}.{key}.{f.name}", getattr(overrides, f.name), f.metadata)
        return
    if "choices" in rules and value not in rules["choices"]:
        raise InvalidArgumentError(
            f"{value!r} is not allowed", object=name, hint="one of " + ", ".join(rules["choices"])
        )
    if "mode" in rules and not _MODE.fullmatch(f"{value:03o}"):
        # 600 is 0o1130 and 400 is 0o620: whoever forgot the 0o must not get a socket that others may use.
        raise InvalidArgumentError(
            f"{value} is 0o{value:o}, no mode of a socket",
            object=name,
            hint="0o600 or 0o660, with the 0o; other users have a socket of their own: user_socket",
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidArgumentError("must be a finite number", object=name)
    if "minimum" in rules and value < rules["minimum"]:
        raise InvalidArgumentError(f"{value} is too small", object=name, hint=f"at least {rules['minimum']}")
    if "maximum" in rules and value > rules["maximum"]:
        raise InvalidArgumentError(f"{value} is too large", object=name, hint=f"at most {rules['maximum']}")
    if "address" in rules and (value or rules["address"] is True):
        try:
            parse_address(value, allow_port_zero=True)
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"{value!r}: {error.message}", object=name, hint=error.hint) from None
    if "name" in rules and (value or rules["name"] is True):
        _check_name(name, value)
    if "domains" in rules:
        for domain in parse_domains(value) - {ALL_DOMAINS}:
            _check_name(name, domain)
    if "path" in rules and (value or rules["path"] is True):
        _check_dir(name, value)


def check_periods(idle_s: float, keep_alive_s: float, object: str) -> None:
    """Raises invalid_argument for periods in force together under which nothing would ever be dedup'd."""
    if keep_alive_s <= idle_s:
        raise InvalidArgumentError(
            f"a keep-alive period of {keep_alive_s:g} s ends before an idle period of {idle_s:g} s: "
            "it would never be dedup'd",
            object=object,
            hint="make the keep-alive period the longer one, or disable its timers",
        )


def _check_name(name: str, value: str) -> None:
    if len(value) > NAME_CHARS_MAX or not _NAME.fullmatch(value):
        raise InvalidArgumentError(
            f"{value[:50]!r} is not a name",
            object=name,
            hint=f"letters, digits, '.', '_', '-', at most {NAME_CHARS_MAX} characters",
        )


def _check_dir(name: str, value: str) -> None:
    # The agent removes files under these folders: a relative or dotted path could point anywhere.
    if not value.startswith("/") or ".." in Path(value).parts or value == "/":
        raise InvalidArgumentError(
            f"{value!r} is not usable", object=name, hint="an absolute folder without '..'"
        )


def parse_domains(text: str) -> frozenset[str]:
    """The names in a list with commas; none of an empty one."""
    return frozenset(filter(None, (part.strip() for part in text.split(","))))


# --- loading -----------------------------------------------------------------------------------------------
def parse_size(text: str) -> int:
    """Bytes of "4096", "512MiB", "1.5GB". Raises ValueError."""
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise ValueError("not a size: write 4096, 512MiB or 8GiB")
    return int(float(match[1]) * _UNITS[(match[2] or "B").upper()]) if match[2] else int(match[1])


def load(
    cls: type[S],
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> S:
    """The checked settings. Flags that are None count as not given; `tls_ca` and the like set `tls`.

    Raises invalid_argument for an unknown key, a wrong type, a value out of bounds or a file that cannot be read.
    """
    environment = os.environ if environment is None else environment
    table = _read_file(file, cls.SECTION) if file else {}
    values = _from_table(cls, table, cls.SECTION)
    prefix = f"MEDES_{cls.SECTION.upper()}_"
    _refuse_unknown_variables(cls, prefix, environment)
    tls_values = {}
    for f in dataclasses.fields(cls):
        for source, raw in (
            (prefix + f.name.upper(), environment.get(prefix + f.name.upper())),
            ("--" + f.name.replace("_", "-"), (flags or {}).get(f.name)),
        ):
            if raw is not None and f.name != "tls" and "table" not in f.metadata:
                values[f.name] = _convert(_hints(cls)[f.name], raw, source, f.name)
    for f in dataclasses.fields(TlsFiles):
        for raw in (environment.get(f"{prefix}TLS_{f.name.upper()}"), (flags or {}).get(f"tls_{f.name}")):
            if raw is not None:
                tls_values[f.name] = str(raw)
    if tls_values:
        values["tls"] = dataclasses.replace(values.get("tls", TlsFiles()), **tls_values)
    settings = cls(**values)
    settings.check()
    return settings


def _refuse_unknown_variables(cls: type, prefix: str, environment: Mapping[str, str]) -> None:
    """A mistyped variable must not leave a default in its setting's place."""
    known = {prefix + f.name.upper() for f in dataclasses.fields(cls) if "table" not in f.metadata} - {
        f"{prefix}TLS"
    }
    known |= {f"{prefix}TLS_{f.name.upper()}" for f in dataclasses.fields(TlsFiles)}
    for name in sorted(environment):
        if name.startswith(prefix) and name not in known and not _SERVICE_LINK.fullmatch(name[len(prefix) :]):
            raise InvalidArgumentError(
                "no such setting", object=name, hint=_closest(name, dict.fromkeys(known))
            )


def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _read_file(file: Path, section: str) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            data = stream.read(SETTINGS_FILE_BYTES_MAX + 1)
        if len(data) > SETTINGS_FILE_BYTES_MAX:
            raise InvalidArgumentError("too large for a settings file", object=str(file))
        parsed = tomllib.loads(data.decode())
    except OSError as error:
        raise InvalidArgumentError(f"cannot read: {error.strerror}", object=str(file)) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidArgumentError(f"not TOML: {error}", object=str(file)) from error
    except RecursionError:
        raise InvalidArgumentError("not TOML: it nests too deeply", object=str(file)) from None
    unknown = set(parsed) - {"agent", "controller"}
    if unknown:
        raise InvalidArgumentError(
            f"unknown table [{sorted(unknown)[0]}]", object=str(file), hint="[agent] or [controller]"
        )
    table = parsed.get(section, {})
    if not isinstance(table, dict):
        raise InvalidArgumentError(f"{section} must be a table", object=str(file))
    return table


def _from_table(cls: type, table: Mapping[str, Any], where: str) -> dict[str, Any]:
    fields = {f.name: f for f in dataclasses.fields(cls)}
    hints = _hints(cls)
    values: dict[str, Any] = {}
    for key, raw in table.items():
        name = f"{where}.{key}"
        if key not in fields:
            raise InvalidArgumentError("unknown setting", object=name, hint=_closest(key, fields))
        if key == "tls":
            values[key] = TlsFiles(**_from_table(TlsFiles, _table(raw, name), name))
        elif "table" in fields[key].metadata:
            row = fields[key].metadata["table"]
            values[key] = {
                k: row(**_from_table(row, _table(v, f"{name}.{k}"), f"{name}.{k}"))
                for k, v in _table(raw, name).items()
            }
        else:
            values[key] = _convert(hints[key], raw, name, key)
    return values


def _table(raw: Any, name: str) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise InvalidArgumentError("must be a table", object=name)
    return raw


def _closest(key: str, fields: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(key, fields, n=1)
    return f"did you mean {close[0]}?" if close else "see docs/operations.md"


def _convert(hint: Any, raw: Any, name: str, field_name: str) -> Any:
    """A TOML, environment or flag value as the field's type. Raises invalid_argument."""
    if typing.get_origin(hint) is types.UnionType:
        hint = next(a for a in typing.get_args(hint) if a is not type(None))
    try:
        if hint is bool:
            return _to_bool(raw)
        if isinstance(raw, bool):
            raise ValueError("not a boolean setting")
        if hint is int:
            if isinstance(raw, float):
                raise ValueError("must be a whole number")
            if isinstance(raw, str):
                if field_name.endswith("_mode") and raw.isdecimal() and len(raw) > 1:
                    raise ValueError(f"write 0o{raw.lstrip('0')}")
                return parse_size(raw) if field_name.endswith("_bytes") else int(raw, 0)
            return int(raw)
        if hint is float:
            return float(raw)
        if not isinstance(raw, str):
            raise ValueError("must be text")
        return raw
    except (ValueError, TypeError) as error:
        raise InvalidArgumentError(f"{raw!r}: {error}", object=name) from None


def _to_bool(raw: Any) -> bool:
    if isinstance(raw, bool):
        return raw
    if isinstance(raw, str) and raw.lower() in ("1", "true", "yes", "on"):
        return True
    if isinstance(raw, str) and raw.lower() in ("0", "false", "no", "off"):
        return False
    raise ValueError("must be true or false")
