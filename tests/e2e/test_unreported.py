"""A runtime that calls nothing but Register: its sandbox is idle when it does nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import pytest

from medes.types import SandboxState as S
from tests.support.cluster import Cluster, wait_until
from tests.support.live import Program

pytestmark = pytest.mark.live
MakeCluster = Callable[..., Cluster]
# Works until a line comes, then waits.
WORKER = """
import sys, threading, time
kept = [str(i) * 10 for i in range(100000)]
busy = True
def work():
    while busy:
        sum(map(len, kept))
threading.Thread(target=work, daemon=True).start()
print("ready", flush=True)
for number, line in enumerate(sys.stdin):
    busy = False
    print(number, len(kept), flush=True)
"""


def test_who_works_is_not_idle(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(nodes=1, controller=False, idle_period_s=6)
    with cluster.agents[0].client() as client, Program([sys.executable, "-c", WORKER]) as program:
        begin_s = time.monotonic()
        client.register("worker", pids=[program.pid], sandbox_id="a")
        while time.monotonic() < begin_s + 13:  # more than twice its idle period
            assert client.get("a").state is S.WARM
            time.sleep(0.5)
        assert client.get("a").dedup_count == 0
        assert program.ask("rest") == "100000"
        wait_until(lambda: client.get("a").state is S.DEDUP, "idle at last", 60.0)
        assert program.ask("again") == "100000"
