"""Requests of the restore API, built once for the blocking and the asyncio client."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from medes.errors import InvalidArgumentError
from medes.limits import PIDS_PER_SANDBOX_MAX
from medes.rpc.convert import to_proto
from medes.rpc.gen import agent_pb2 as pb
from medes.types import Activity, LifecycleSettings

DEFAULT_AGENT_ADDRESS = "unix:/run/medes/agent.sock"
# The ops themselves take well under a second; these bound a caller's wait behind other ops.
DEDUP_TIMEOUT_S = 300.0
RESTORE_TIMEOUT_S = 60.0


def register_request(
    function: str,
    pids: Sequence[int],
    cgroup: str,
    sandbox_id: str,
    tenant: str,
    domain: str,
    lifecycle: LifecycleSettings | None,
    driver: str,
    hook_address: str,
    purge_kills: bool,
) -> pb.RegisterRequest:
    if bool(pids) == bool(cgroup):
        raise InvalidArgumentError("give either pids or a cgroup", object=function)
    if len(pids) > PIDS_PER_SANDBOX_MAX:
        raise InvalidArgumentError(f"more than {PIDS_PER_SANDBOX_MAX} pids", object=function)
    settings: Any = to_proto(pb.LifecycleSettings, lifecycle) if lifecycle else None
    try:
        return pb.RegisterRequest(
            sandbox_id=sandbox_id,
            function=function,
            tenant=tenant,
            domain=domain,
            pids=list(pids),
            cgroup=cgroup,
            lifecycle=settings,
            driver=driver,
            hook_address=hook_address,
            purge_kills=purge_kills,
        )
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(str(error), object=function) from error


def activity_request(sandbox_id: str, activity: Activity) -> pb.NotifyActivityRequest:
    number: Any = int(activity)  # an enum field takes its number
    return pb.NotifyActivityRequest(sandbox_id=sandbox_id, activity=number)
