"""Settings of controller and agent: defaults ← TOML file ← environment ← command line, checked as one.

A file has the tables [agent] and [controller]; `tls` and per-function overrides are tables inside them:

    [agent]
    controllers = ["10.0.0.1:7070", "10.0.0.2:7070"]
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

from medes.config.checks import ALL_DOMAINS, check_periods, parse_domains
from medes.config.loading import load, parse_size
from medes.config.settings import (
    GIB,
    LOG_LEVELS,
    AgentSettings,
    ControllerSettings,
    FunctionOverrides,
    PeerOverrides,
    Settings,
    group_id,
)

__all__ = [
    "ALL_DOMAINS",
    "GIB",
    "LOG_LEVELS",
    "AgentSettings",
    "ControllerSettings",
    "FunctionOverrides",
    "PeerOverrides",
    "Settings",
    "check_periods",
    "group_id",
    "load",
    "parse_domains",
    "parse_size",
]
