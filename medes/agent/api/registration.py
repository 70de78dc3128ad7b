"""What Register gives, checked: names, bounds, processes and cgroups that may be a sandbox, the driver."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

from medes import native
from medes.agent import cgroups
from medes.agent.drivers import Driver
from medes.agent.periods import refuse_contradiction
from medes.agent.processes import refuse_own, start_time
from medes.agent.sandbox import SandboxSpec
from medes.config import AgentSettings
from medes.errors import InvalidArgumentError, LimitExceededError, NotFoundError, UnsupportedError
from medes.limits import NAME_CHARS_MAX, PIDS_PER_SANDBOX_MAX
from medes.rpc.address import UNIX_PATH_BYTES_MAX
from medes.types import LifecycleSettings

DEFAULT_TENANT = "default"
PERIOD_MS_MAX = 365 * 86400 * 1000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class Registration:
    """What Register gives; empty fields as in agent.proto."""

    sandbox_id: str = ""
    function: str = ""
    tenant: str = ""
    domain: str = ""
    pids: tuple[int, ...] = ()
    cgroup: str = ""
    lifecycle: LifecycleSettings = field(default_factory=LifecycleSettings)
    driver: str = ""
    hook_address: str = ""
    purge_kills: bool = False


def checked_spec(
    settings: AgentSettings, drivers: Mapping[str, Driver], missing: Mapping[str, str], request: Registration
) -> SandboxSpec:
    """The sandbox that a caller asks for; every bound is checked before any work. `missing`: what the live driver lacks
    here → how to get it. Blocks: it reads /proc.

    Raises invalid_argument, limit_exceeded, not_found (unknown pid or cgroup), unsupported.
    """
    if len(request.pids) > PIDS_PER_SANDBOX_MAX:
        raise LimitExceededError(
            f"{len(request.pids)} pids; a sandbox has at most {PIDS_PER_SANDBOX_MAX} processes", object="pids"
        )
    tenant = request.tenant or DEFAULT_TENANT
    override = settings.for_function(request.function)
    domain = request.domain or override.domain or tenant
    sandbox_id = request.sandbox_id or f"{request.function[:100]}-{secrets.token_hex(6)}"
    for what, name in (
        ("function", request.function),
        ("tenant", tenant),
        ("domain", domain),
        ("sandbox_id", sandbox_id),
    ):
        if len(name) > NAME_CHARS_MAX or not _NAME.fullmatch(name):
            raise InvalidArgumentError(
                f"{name[:50]!r} is not a name",
                object=what,
                hint=f"letters, digits, '.', '_', '-', at most {NAME_CHARS_MAX} characters",
            )
    if bool(request.pids) == bool(request.cgroup):
        raise InvalidArgumentError("give pids or a cgroup", object=sandbox_id)
    own = request.lifecycle
    periods = (own.idle_period_ms, own.keep_alive_period_ms, own.keep_dedup_period_ms, own.activity_lease_ms)
    if any(p < 0 or p > PERIOD_MS_MAX for p in periods):
        raise InvalidArgumentError("a period is at most a year", object=sandbox_id)
    refuse_contradiction(settings, request.function, own, sandbox_id)
    if len(set(request.pids)) != len(request.pids):
        raise InvalidArgumentError("pids must differ", object=sandbox_id)
    if len(request.hook_address) > UNIX_PATH_BYTES_MAX:
        raise LimitExceededError(f"longer than {UNIX_PATH_BYTES_MAX} characters", object="hook_address")
    driver = _driver_name(settings, drivers, missing, request.driver)
    start_times = tuple(_checked_pid(pid) for pid in request.pids)
    cgroup = cgroups.resolve(request.cgroup) if request.cgroup else ""
    refuse_own(native.cgroup_pids(cgroup) if cgroup else request.pids)
    return SandboxSpec(
        sandbox_id,
        request.function,
        tenant,
        domain,
        request.pids,
        start_times,
        cgroup,
        request.lifecycle,
        driver,
        request.hook_address,
        request.purge_kills,
    )


def _checked_pid(pid: int) -> int:
    if pid <= 0:
        raise InvalidArgumentError("not the pid of a process", object=f"pid {pid}")
    ticks = start_time(pid)
    if ticks == 0:
        raise NotFoundError("no such process", object=f"pid {pid}")
    return ticks


def _driver_name(
    settings: AgentSettings, drivers: Mapping[str, Driver], missing: Mapping[str, str], asked: str
) -> str:
    """The driver that was asked for, else the one of the settings: never another in its place."""
    name = asked or settings.driver
    if name in drivers:
        return name
    if name == "live" and missing:
        raise UnsupportedError(
            f"the live driver cannot run here: {'; '.join(missing)}",
            object="driver live",
            hint="; ".join(missing.values()),
        )
    raise UnsupportedError("no such driver", object=f"driver {name}", hint=", ".join(drivers))
