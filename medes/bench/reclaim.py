"""What it costs to put a sleeper's touched pages out again: a reclaim, beside what it took before there was one, a whole
restore and a dedup op after it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from medes.bench.agent import running_agent
from medes.client import MedesClient
from medes.errors import InternalError
from medes.quantiles import median
from medes.types import SandboxState as S

FUNCTION = "bench-reclaim"
TOUCHES_PER_S_MAX = 1 << 18  # it is asked to touch, and is to sleep on
SETTLE_S = 0.3
# Records of fields that repeat and fields that do not, as a store of documents has them; a page in twenty that is touched is
# written.
PROGRAM = """
import hashlib, mmap, random, sys
page, megabytes = 4096, int(sys.argv[1])
memory = mmap.mmap(-1, megabytes << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
words = [hashlib.sha256(str(i).encode()).digest() for i in range(4096)]
for at in range(0, megabytes << 20, page):
    n = at // page
    memory[at:at + page] = (words[n % 4096] * 64 + words[n // 4096 % 4096] * 63 + n.to_bytes(32, "little"))[:page]
written = {}
def right(n):
    stored = int.from_bytes(memory[(n + 1) * page - 32:(n + 1) * page], "little")
    return stored == written.get(n, n)
print("ready", flush=True)
for line in sys.stdin:
    what, *numbers = line.split()
    if what == "touch":
        rng = random.Random(int(numbers[1]))
        wrong = 0
        for n in rng.sample(range(megabytes * 256), int(numbers[0])):
            wrong += not right(n)
            if rng.random() < 0.05:
                written[n] = n + 1
                memory[(n + 1) * page - 32:(n + 1) * page] = (n + 1).to_bytes(32, "little")
    else:
        wrong = sum(not right(n) for n in range(megabytes * 256))
    print(wrong, flush=True)
"""


class _Records:
    """The program; every answer says how many of the pages it looked at were wrong."""

    def __init__(self, megabytes: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(megabytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer()

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, line: str) -> int:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return int(self._answer())

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise InternalError("the program has ended", object=f"pid {self.pid}")
        return line

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


def run(megabytes: int, pages: int, rounds: int) -> Iterator[dict[str, Any]]:
    """One case a size: the first op, `rounds` reclaims after `pages` random touches each, then as many times the long way."""
    records = _Records(megabytes)
    try:
        with (
            running_agent(
                touches_per_s_max=TOUCHES_PER_S_MAX, idle_period_s=3600, keep_alive_period_s=7200
            ) as agent,
            MedesClient(agent.address) as client,
        ):
            yield _measure(client, records, megabytes, pages, rounds)
    finally:
        records.close()


def _measure(
    client: MedesClient, records: _Records, megabytes: int, pages: int, rounds: int
) -> dict[str, Any]:
    client.register(FUNCTION, pids=[records.pid], sandbox_id="a")
    first = client.dedup("a", make_base=True).report
    reclaim_us, stopped_us, taken, wrong = [], [], [], 0
    for n in range(rounds):
        wrong += records.ask(f"touch {pages} {n}")
        time.sleep(SETTLE_S)
        touched_bytes = client.get("a").touched_bytes
        client.dedup("a")
        op = client.explain("a").ops[0]
        if op.kind != "reclaim":
            raise InternalError(f"the last op was a {op.kind}", object="a", hint="raise --megabytes")
        reclaim_us.append(op.total_us)
        stopped_us.append(op.stage_us["stopped"])
        taken.append((touched_bytes - client.get("a").touched_bytes) // 4096)
    kept_bytes = client.get("a").kept_bytes
    long_us, long_stopped_us = [], []
    for n in range(rounds):
        wrong += records.ask(f"touch {pages} {rounds + n}")
        begin_s = time.perf_counter()
        client.restore("a", eager=True)
        report = client.dedup("a").report
        long_us.append((time.perf_counter() - begin_s) * 1e6)
        long_stopped_us.append(report.stopped_us)
    asleep = client.get("a").state is S.DEDUP
    client.restore("a", eager=True)
    wrong += records.ask("check")
    return {
        "benchmark": "reclaim",
        "megabytes": megabytes,
        "touched_pages": pages,
        "rounds": rounds,
        "first_op_ms": round(first.total_us / 1000, 1),
        "first_stopped_ms": round(first.stopped_us / 1000, 1),
        "reclaim_ms_p50": round(median(reclaim_us) / 1000, 2),
        "reclaim_stopped_ms_p50": round(median(stopped_us) / 1000, 2),
        "reclaim_stopped_ms_max": round(max(stopped_us) / 1000, 2),
        "reclaimed_pages_p50": int(median(taken)),
        "restore_and_dedup_ms_p50": round(median(long_us) / 1000, 1),
        "restore_and_dedup_stopped_ms_p50": round(median(long_stopped_us) / 1000, 1),
        "kept_mb_after_reclaims": round(kept_bytes / 1e6, 1),
        "reclaim_ratio": round(median(reclaim_us) / first.total_us, 4),
        "verified": wrong == 0 and asleep,
    }
