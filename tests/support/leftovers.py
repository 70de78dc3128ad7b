"""What an agent still holds of sandboxes: its metrics, descriptors, files, pins. For tests that end with "nothing"."""

from __future__ import annotations

import contextlib
import urllib.request
from pathlib import Path

from tests.support.cluster import AgentProcess


def gauges(address: str) -> dict[str, float]:
    """The metrics without labels that an agent serves at host:port."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return {n: float(v) for n, _, v in (x.partition(" ") for x in lines if x[0] != "#" and "{" not in x)}


def descriptors(agent: AgentProcess) -> list[str]:
    """Those that belong to sandboxes: of processes, of their memory, of files in shm_dir."""
    assert agent.process is not None
    own = f"/proc/{agent.process.pid}"
    found = []
    for fd in Path(f"{own}/fd").iterdir():
        with contextlib.suppress(OSError):
            target, about = str(fd.readlink()), Path(f"{own}/fdinfo/{fd.name}").read_text()
            if f"Pid:\t{agent.process.pid}\n" not in about:  # one of itself is the keeper's
                found.append(target)
    kinds = ("userfaultfd", "pidfd", ".medes", ".slab", "/pagemap", "/mem")
    return [target for target in found if any(kind in target for kind in kinds)]


def left_over(agent: AgentProcess, address: str) -> dict[str, object]:
    """What the agent holds of its sandboxes, by kind; empty when that is nothing. `address`: of its metrics."""
    with agent.client() as client:
        # A damaged line may have had a pin of another node, so bases are kept for nobody known, or its end.
        damaged = "pins of other nodes may be forgotten" in agent.log.read_text(errors="replace")
        told = gauges(address)
        found: dict[str, object] = {
            "sandboxes": client.list(),
            "orphans": client.orphans(),
            "files": agent.shm_files("sandbox-"),
            "descriptors": descriptors(agent),
            "pins": [
                b
                for b in client.node().bases
                if (b.pins_by_node.get(agent.node_id, 0) if damaged else b.pins)
            ],
            "slots": told["medes_agent_restores_running"],
            "tasks": told["medes_agent_tasks"],
        }
    return {kind: what for kind, what in found.items() if what}
