"""The janitor: what a killed driver leaves is ended and removed, and nothing else."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from medes.runtimes.host import janitor

DRIVER = """
import os, subprocess, sys, time
from pathlib import Path
from medes.runtimes.host.janitor import JanitorClient
keeper = JanitorClient()
group = ["sh", "-c", "sleep 600 & sleep 600"]
one, two = (subprocess.Popen(group, start_new_session=True) for _ in range(2))
keeper.process(one.pid); keeper.process(two.pid)
keeper.process(two.pid, False)
folder = Path(sys.argv[1]); (folder / "sub").mkdir(parents=True)
keeper.folder(folder)
print(one.pid, two.pid, flush=True)
time.sleep(600)
"""


def members(group: int) -> list[int]:
    return [pid for pid in janitor._all_pids() if janitor._group_of(pid) == group]


def wait_until(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_killed_driver_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    one, two = map(int, driver.stdout.readline().split())
    try:
        wait_until(lambda: len(members(one)) >= 2 and len(members(two)) >= 2)
        driver.kill()
        wait_until(lambda: not members(one) and not folder.exists())
        assert members(two), "a forgotten group must be left alone"
    finally:
        driver.wait()
        driver.stdout.close()
        os.killpg(two, signal.SIGKILL)


def test_a_reused_number_is_left_alone() -> None:
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as process:
        janitor.end_groups({process.pid: janitor.start_time_ticks(process.pid) - 1})
        assert process.poll() is None
        janitor.end_groups({process.pid: janitor.start_time_ticks(process.pid)})
        assert process.wait() == -signal.SIGKILL


def test_close_cleans_up_and_is_idempotent(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    keeper = janitor.JanitorClient()
    keeper.folder(folder)
    keeper.close()
    keeper.close()
    assert not folder.exists()
