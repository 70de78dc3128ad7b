"""Clients in Python: the restore API of an agent and the controller, blocking and asyncio.

    from medes.client import MedesClient

    with MedesClient("unix:/run/medes/agent.sock") as medes:
        sandbox = medes.register("resize", pids=[process.pid])
        medes.begin(sandbox.sandbox_id)
        ...
        medes.end(sandbox.sandbox_id)
        print(medes.dedup(sandbox.sandbox_id).report.saved_bytes)

Results are the dataclasses of `medes.types`, failures the exceptions of `medes.errors`.
"""

from medes.client.aio import AsyncMedesClient
from medes.client.blocking import MedesClient
from medes.client.controller import AsyncControllerClient, ControllerClient

__all__ = ["AsyncControllerClient", "AsyncMedesClient", "ControllerClient", "MedesClient"]
