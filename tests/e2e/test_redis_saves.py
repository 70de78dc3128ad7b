"""redis saves itself by a forked child. Asleep, under a memory limit that it fits in warm, it must get through it as well."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from medes import native
from medes.types import SandboxState
from tests.support.cluster import Cluster, wait_until
from tests.support.memory_cgroup import MemoryCgroup, memory_cgroup
from tests.support.ports import free_port

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(os.geteuid() != 0, reason="memory cgroups are root's to make"),
]

MakeCluster = Callable[..., Cluster]
KEYS = 100_000
FILL = f"for i = 1, {KEYS} do redis.call('SET', 'key:' .. i, string.rep(i .. ':', 20)) end"
LIMIT_RATIO = 1.3  # of what it holds: a copy of everything does not fit
WAIT_S = 120.0


@dataclass(frozen=True)
class Redis:
    pid: int
    port: int

    def ask(self, *words: str) -> str:
        command = ["redis-cli", "-p", str(self.port), *words]
        return subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=WAIT_S
        ).stdout.strip()

    def status(self) -> dict[str, str]:
        lines = self.ask("INFO", "persistence").splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    def save(self) -> str:
        """What became of it."""
        assert self.ask("BGSAVE") == "Background saving started"
        wait_until(lambda: self.status()["rdb_bgsave_in_progress"] == "0", "saved", WAIT_S)
        return self.status()["rdb_last_bgsave_status"]


@contextmanager
def redis(folder: Path, group: MemoryCgroup) -> Iterator[Redis]:
    """In the group from its first page on."""
    for name in ("redis-server", "redis-cli"):
        if not shutil.which(name):
            pytest.skip(f"{name} is not installed")
    port = free_port()
    enter = f'echo $$ > {group.folder}/cgroup.procs && exec redis-server "$@"'
    options = ["--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder), "--save", ""]
    process = subprocess.Popen(["sh", "-c", enter, "sh", *options], stdout=subprocess.DEVNULL)
    try:
        made = Redis(process.pid, port)

        def answers() -> bool:
            try:
                return made.ask("PING") == "PONG"
            except subprocess.CalledProcessError:
                assert process.poll() is None
                return False

        wait_until(answers, "redis answers", WAIT_S)
        made.ask("EVAL", FILL, "0")
        yield made
    finally:
        process.kill()
        process.wait()
        for pid in (group.folder / "cgroup.procs").read_text().split():  # a child of it that still saves
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)


def test_it_saves_itself_asleep_within_its_limit(make_cluster: MakeCluster, tmp_path: Path) -> None:
    agent = make_cluster(nodes=1, controller=False).agents[0]
    with memory_cgroup() as group, redis(tmp_path, group) as server, agent.client() as client:
        held = native.private_bytes([server.pid])
        group.limit(int(LIMIT_RATIO * held))
        assert server.save() == "ok"  # warm
        client.register("redis", pids=[server.pid], sandbox_id="a")
        client.dedup("a")
        assert server.save() == "ok"
        wait_until(lambda: client.get("a").state == SandboxState.WARM, "all of it back", WAIT_S)
        assert server.ask("DBSIZE") == str(KEYS)
        assert native.private_bytes([server.pid]) < 1.1 * held
