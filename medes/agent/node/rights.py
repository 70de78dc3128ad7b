"""The capabilities that the agent keeps, and why; it gives up all others before it reads anything from anybody.

Each is needed: tests/e2e/test_rights.py takes them away one by one. Together they are enough to become root in other ways;
what giving up the rest is for stands in docs/threat-model.md.
"""

from __future__ import annotations

from pathlib import Path

from medes import native
from medes.config import AgentSettings
from medes.errors import IoError
from medes.rpc.address import parse_address

# Number (linux/capability.h) and what fails without it.
KEPT = {
    "dac_override": (1, "files in /proc, hook sockets and frozen cgroups of sandboxes of other users"),
    "kill": (5, "stopping and ending processes of other users"),
    "sys_ptrace": (19, "sandboxes are stopped, read and given their memory back"),
    "sys_admin": (21, "sandboxes under a seccomp filter, as every container"),
    "sys_nice": (23, "huge pages are made huge again"),
}
# Kept where the settings ask for what needs it.
CHOWN, NET_BIND_SERVICE, IPC_LOCK = 0, 10, 14
PORTS_OF_ROOT = 1024


def needed(settings: AgentSettings) -> list[int]:
    """The capabilities that an agent with these settings keeps."""
    found = [number for number, _ in KEPT.values()]
    if settings.listen_group:
        found.append(CHOWN)
    ports = [parse_address(a, allow_port_zero=True).port for a in _addresses(settings)]
    if any(0 < port < PORTS_OF_ROOT for port in (*ports, settings.page_port)):
        found.append(NET_BIND_SERVICE)
    if settings.transport not in ("local", "tcp"):
        found.append(IPC_LOCK)  # memory is registered with an adapter, which RLIMIT_MEMLOCK may not admit
    return found


def _addresses(settings: AgentSettings) -> list[str]:
    return [a for a in (settings.peer_address, settings.listen_tcp, settings.metrics_address) if a]


def restrict(settings: AgentSettings) -> None:
    """Gives up what is not needed. Call it while the process has one thread. Raises io."""
    if (threads := len(list(Path("/proc/self/task").iterdir()))) != 1:
        raise IoError(f"{threads} threads run already: not all would give up their rights", object="agent")
    native.keep_only(needed(settings))
