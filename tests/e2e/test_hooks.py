"""A function's hooks run around dedup state, also when the agent's own idle timer asks for it."""

import asyncio
from pathlib import Path

import pytest

from medes.demo.cluster import local_cluster
from medes.runtimes import manifest
from medes.types import SandboxState as S

CODE = """
import random
from snapshot_restore_py import register_after_restore, register_before_snapshot
data = [random.Random(n).randbytes(2000) for n in range(1000)]
seen = []
register_before_snapshot(seen.append, "before")
register_after_restore(seen.append, "after")
def handler(event, context):
    return seen
"""


@pytest.mark.live
async def test_hooks_run_when_the_idle_timer_dedups(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text(CODE)
    (tmp_path / "function.toml").write_text(
        'name = "hooked"\nhandler = "code:handler"\nevent = {}\nidempotent = false\n'
    )
    async with local_cluster(1, agent_options=["--idle-period-s", "0.5"]) as cluster:
        host = cluster.host
        (instance,) = await host.deploy(manifest.load(tmp_path), 1)
        node = host.nodes[instance.node_id]
        for _ in range(600):
            if (await node.get(instance)).state is S.DEDUP:
                break
            await asyncio.sleep(0.05)
        else:
            log = (cluster.folder / f"{instance.node_id}.log").read_text(errors="replace")
            raise AssertionError(f"never deduplicated: {log[-4000:]}")
        answer = await host.invoke("hooked", {}, instance_id=instance.instance_id)
        assert answer.result == ["before", "after"]
