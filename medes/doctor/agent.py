"""What waits or lies unused at this machine's agent, where one answers."""

from __future__ import annotations

import os
from collections.abc import Iterator

from medes.client import MedesClient
from medes.doctor.check import Check
from medes.errors import AgentUnreachableError, MedesError
from medes.places import DEFAULT_AGENT_ADDRESS

GROUP = "agent"
TIMEOUT_S = 5.0
NAMED_MAX = 10


def probe() -> Iterator[Check]:
    address = os.environ.get("MEDES_AGENT") or DEFAULT_AGENT_ADDRESS
    try:
        with MedesClient(address, timeout_s=TIMEOUT_S) as client:
            waiting = [f"{s.sandbox_id}: {s.waiting}" for s in client.list() if s.waiting]
            orphans = [f"{o.name} ({o.bytes >> 10} KiB): {o.reason}" for o in client.orphans()]
    except AgentUnreachableError:
        return  # none runs here, which is no fault of the machine's
    except MedesError as error:
        yield Check(GROUP, "restore API", False, str(error), error.hint)
        return
    for name, found, fix in (
        ("waiting sandboxes", waiting, "the cause of each says what to do; medes sandbox explain ID"),
        ("orphans", orphans, "medes orphans ls; any may hold the only copy of a living process's pages"),
    ):
        more = f"; and {len(found) - NAMED_MAX} more" if len(found) > NAMED_MAX else ""
        yield Check(GROUP, name, not found, "; ".join(found[:NAMED_MAX]) + more if found else "none", fix)
