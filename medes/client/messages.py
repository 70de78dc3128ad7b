"""Requests of the restore API, built once for the blocking and the asyncio client."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Any, TypeVar

from google.protobuf.message import Message

from medes.errors import InvalidArgumentError, LimitExceededError, MedesError, from_code
from medes.limits import PIDS_PER_SANDBOX_MAX
from medes.rpc.convert import to_proto
from medes.rpc.gen import agent_pb2 as pb
from medes.types import Activity, LifecycleSettings

M = TypeVar("M", bound=Message)
# The ops themselves take well under a second; these bound a caller's wait behind other ops.
DEDUP_TIMEOUT_S = 300.0
RESTORE_TIMEOUT_S = 60.0


def register_request(
    function: str,
    pids: Sequence[int],
    cgroup: str,
    subject: str,
    sandbox_id: str,
    tenant: str,
    domain: str,
    lifecycle: LifecycleSettings | None,
    driver: str,
    hook_address: str,
    purge_kills: bool,
) -> pb.RegisterRequest:
    if isinstance(pids, (str, bytes)) or not isinstance(pids, Sequence | Set):
        raise InvalidArgumentError(
            f"pids is {pids!r:.50}, not a list of process ids", object=str(function), hint="pids=[4711]"
        )
    if sum(map(bool, (pids, cgroup, subject))) != 1:
        raise InvalidArgumentError(
            "give either pids or a cgroup, or a driver's subject", object=str(function)
        )
    if len(pids) > PIDS_PER_SANDBOX_MAX:
        raise LimitExceededError(
            f"{len(pids)} pids; a sandbox has at most {PIDS_PER_SANDBOX_MAX} processes", object=str(function)
        )
    settings: Any = to_proto(pb.LifecycleSettings, lifecycle) if lifecycle else None
    try:
        return pb.RegisterRequest(
            sandbox_id=sandbox_id,
            function=function,
            tenant=tenant,
            domain=domain,
            pids=list(pids),
            cgroup=cgroup,
            subject=subject,
            lifecycle=settings,
            driver=driver,
            hook_address=hook_address,
            purge_kills=purge_kills,
        )
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(str(error), object=str(function)) from error


def activity_request(sandbox_id: str, activity: Activity) -> pb.NotifyActivityRequest:
    number: Any = int(activity)  # an enum field takes its number
    return request(pb.NotifyActivityRequest, sandbox_id=sandbox_id, activity=number)


def answer_error(detail: Any) -> MedesError:
    """The error in an answer of a stream."""
    return from_code(detail.code, detail.message, detail.object, detail.hint)


def request(message_class: type[M], **fields: Any) -> M:
    """A request of a caller's values. Raises invalid_argument for one of another type or out of its bounds."""
    try:
        return message_class(**fields)
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(str(error), object=message_class.__name__) from None
