"""What Register gives, checked: names, bounds, processes and cgroups that may be a sandbox, the driver."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from medes.agent.sandboxes.periods import refuse_contradiction
from medes.agent.sandboxes.sandbox import SandboxSpec
from medes.chance import Chance
from medes.config import AgentSettings
from medes.drivers.registry import Drivers
from medes.drivers.subject import Asked, Subject
from medes.errors import InvalidArgumentError, LimitExceededError
from medes.limits import NAME_CHARS_MAX, PERIOD_MS_MAX, PIDS_PER_SANDBOX_MAX, SUBJECT_CHARS_MAX
from medes.rpc.address import UNIX_PATH_BYTES_MAX
from medes.types import LifecycleSettings

DEFAULT_TENANT = "default"
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
    subject: str = ""
    lifecycle: LifecycleSettings = field(default_factory=LifecycleSettings)
    driver: str = ""
    hook_address: str = ""
    purge_kills: bool = False


def new_sandbox_id(function: str, chance: Chance) -> str:
    """For a sandbox whose runtime has no name for it."""
    return f"{function[:100]}-{chance.hex(6)}"


def checked_spec(
    settings: AgentSettings, drivers: Drivers, request: Registration, chance: Chance
) -> tuple[SandboxSpec, Subject]:
    """The sandbox that a caller asks for; every bound is checked before any work. Blocks: its driver
    looks at it.

    Raises invalid_argument, limit_exceeded, not_found (unknown pid or cgroup), unsupported.
    """
    if len(request.pids) > PIDS_PER_SANDBOX_MAX:
        raise LimitExceededError(
            f"{len(request.pids)} pids; a sandbox has at most {PIDS_PER_SANDBOX_MAX} processes", object="pids"
        )
    tenant = request.tenant or DEFAULT_TENANT
    override = settings.for_function(request.function)
    domain = request.domain or override.domain or tenant
    sandbox_id = request.sandbox_id or new_sandbox_id(request.function, chance)
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
    require_one_name(request.pids, request.cgroup, request.subject, sandbox_id)
    own = request.lifecycle
    periods = (own.idle_period_ms, own.keep_alive_period_ms, own.keep_dedup_period_ms, own.activity_lease_ms)
    if any(p < 0 or p > PERIOD_MS_MAX for p in periods):
        raise InvalidArgumentError("a period is at most a year", object=sandbox_id)
    refuse_contradiction(settings, request.function, own, sandbox_id)
    if len(set(request.pids)) != len(request.pids):
        raise InvalidArgumentError("pids must differ", object=sandbox_id)
    if len(request.hook_address) > UNIX_PATH_BYTES_MAX:
        raise LimitExceededError(f"longer than {UNIX_PATH_BYTES_MAX} characters", object="hook_address")
    driver = _driver_name(settings, drivers, request.driver)
    asked = Asked(request.pids, request.cgroup, request.subject)
    spec = SandboxSpec(
        sandbox_id,
        request.function,
        tenant,
        domain,
        request.lifecycle,
        driver,
        request.hook_address,
        request.purge_kills,
    )
    return spec, drivers.subjects_of(driver).registered(sandbox_id, asked)


def require_one_name(pids: Sequence[int], cgroup: str, subject: str, sandbox_id: str) -> None:
    """Raises invalid_argument unless a sandbox is named in one way, limit_exceeded."""
    if sum(map(bool, (pids, cgroup, subject))) != 1:
        raise InvalidArgumentError("give pids, a cgroup or a subject", object=sandbox_id)
    if len(subject) > SUBJECT_CHARS_MAX:
        raise LimitExceededError(f"longer than {SUBJECT_CHARS_MAX} characters", object="subject")


def _driver_name(settings: AgentSettings, drivers: Drivers, asked: str) -> str:
    """The driver that was asked for, else the one of the settings: never another in its place."""
    name = asked or settings.driver
    if name in drivers.running:
        return name
    raise drivers.why_not(name)
