"""The agent's own power: it gives up what it does not need, and needs what it keeps."""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from medes.agent.node import rights
from medes.client import MedesClient
from medes.config import AgentSettings
from medes.errors import MedesError
from tests.support.cluster import AgentProcess, wait_until

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users: needs root"),
    pytest.mark.live,
]

OTHER = 61_003
PROGRAM = f"""
import ctypes, mmap, os, signal
os.setgroups([]); os.setgid({OTHER}); os.setuid({OTHER}); ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)
area = mmap.mmap(-1, 8 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for at in range(0, len(area), 4096):
    area[at : at + 8] = at.to_bytes(8, "little")
try:
    area.madvise(25)  # MADV_COLLAPSE, which leaves nothing for khugepaged to do by itself later
except OSError:
    pass
print(1, flush=True)
signal.pause()
"""


@contextmanager
def agent_without(folder: Path, *missing: str) -> Iterator[AgentProcess]:
    agent = AgentProcess(folder, f"n-{secrets.token_hex(3)}", "")
    if missing:
        agent.prefix = ["setpriv", "--bounding-set=" + ",".join(f"-{m}" for m in missing), "--inh-caps=-all"]
    agent.start()
    try:
        yield agent
    finally:
        agent.end(signal.SIGKILL)
        shutil.rmtree(agent.shm, ignore_errors=True)
        agent.socket.unlink(missing_ok=True)


@contextmanager
def program(*prefix: str) -> Iterator[int]:
    process = subprocess.Popen([*prefix, sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline()
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def huge_kib(pid: int) -> int:
    return int(Path(f"/proc/{pid}/smaps_rollup").read_text().partition("AnonHugePages:")[2].split()[0])


def works_on_other_users(client: MedesClient) -> bool:
    with program() as pid:
        client.register("f", pids=[pid], sandbox_id="plain")
        client.dedup("plain")
        return client.restore("plain", eager=True).report.was_dedup


def kills(client: MedesClient) -> bool:
    with program() as pid:
        client.register("f", pids=[pid], sandbox_id="killed", purge_kills=True)
        client.purge("killed")
        wait_until(lambda: Path(f"/proc/{pid}/stat").read_text().split()[2] in "ZX", "its end", 10.0)
        return True


def works_under_a_filter(client: MedesClient) -> bool:
    with program(sys.executable, "-m", "tests.support.seccomp") as pid:
        client.register("f", pids=[pid], sandbox_id="filtered")
        client.dedup("filtered")
        return client.restore("filtered", eager=True).report.was_dedup


def joins_huge_pages(client: MedesClient) -> bool:
    with program() as pid:
        if not (before := huge_kib(pid)):
            pytest.skip("the kernel gives no huge pages to those who ask")
        client.register("f", pids=[pid], sandbox_id="huge")
        client.dedup("huge")
        client.restore("huge", eager=True)
        deadline = time.monotonic() + 3
        while huge_kib(pid) < before and time.monotonic() < deadline:
            time.sleep(0.05)
        return huge_kib(pid) >= before


NEEDS: dict[str, Callable[[MedesClient], bool]] = {
    "dac_override": works_on_other_users,
    "kill": kills,
    "sys_ptrace": works_on_other_users,
    "sys_admin": works_under_a_filter,
    "sys_nice": joins_huge_pages,
}


def can(agent: AgentProcess, what: Callable[[MedesClient], bool]) -> bool:
    with agent.client() as client:
        try:
            return what(client)
        except MedesError:
            return False


def test_what_is_kept_is_enough(tmp_path: Path) -> None:
    with agent_without(tmp_path) as agent:
        assert [what.__name__ for what in dict.fromkeys(NEEDS.values()) if not can(agent, what)] == []


@pytest.mark.parametrize("name", rights.KEPT)
def test_without_one_of_them_something_fails(tmp_path: Path, name: str) -> None:
    with agent_without(tmp_path, name) as agent:
        assert not can(agent, NEEDS[name])


def test_an_agent_has_nothing_else(tmp_path: Path) -> None:
    wanted = sum(1 << number for number in rights.needed(AgentSettings()))
    with agent_without(tmp_path) as agent:
        assert agent.process is not None
        proc = Path(f"/proc/{agent.process.pid}")
        held = set()
        for thread in (proc / "task").iterdir():
            with contextlib.suppress(FileNotFoundError):
                status = dict(line.split(":\t", 1) for line in (thread / "status").read_text().splitlines())
                assert int(status["CapBnd"], 16) == wanted and status["NoNewPrivs"] == "1"
                assert status["CapPrm"] == status["CapEff"] and int(status["CapInh"], 16) == 0
                held.add(int(status["CapEff"], 16))
        assert held == {wanted, 0}  # none: the page server's
        limits = next(line for line in (proc / "limits").read_text().splitlines() if "core file" in line)
        assert limits.split()[4:6] == ["0", "0"]


def test_settings_that_need_more_keep_more() -> None:
    assert rights.CHOWN in rights.needed(AgentSettings(listen_group="0"))
    assert rights.NET_BIND_SERVICE in rights.needed(AgentSettings(peer_address="127.0.0.1:80"))
    assert rights.IPC_LOCK not in rights.needed(AgentSettings(transport="tcp"))
    assert sorted(n for n, _ in rights.KEPT.values()) == rights.needed(AgentSettings(transport="tcp"))


def test_the_process_is_closed_to_its_own_user() -> None:
    """As a process of its own: what is given up does not come back."""
    script = (
        "import ctypes, os\nfrom medes import native\nos.setgid(65534); os.setuid(65534)\n"
        "prctl = ctypes.CDLL(None).prctl\nprctl(4, 1, 0, 0, 0)\nnative.keep_only([])\n"
        "print(prctl(3, 0, 0, 0, 0), prctl(39, 0, 0, 0, 0))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["0", "1"], done.stderr
    assert ctypes.CDLL(None).prctl(3, 0, 0, 0, 0) == 1  # this one's own
