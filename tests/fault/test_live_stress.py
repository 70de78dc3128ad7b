"""The C stress program, dedup'd and restored in a loop while it forks, maps, moves, drops and checks."""

from __future__ import annotations

import os
import random
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from medes.errors import BusyError
from tests.fault.live_victim import take_over
from tests.support.live import Deduper, Program
from tests.support.seed import SEED

pytestmark = pytest.mark.live
WAIT_S = 60.0
ROOT = Path(__file__).resolve().parents[2]
KILLS = int(os.environ.get("STRESS_KILLS", "20"))


@pytest.fixture(scope="module")
def stress(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler to build the stress program with")
    binary = tmp_path_factory.mktemp("stress") / "stress"
    source = Path(__file__).with_name("stress.c")
    subprocess.run([compiler, "-O1", "-pthread", "-o", str(binary), str(source)], check=True)
    return binary


def _answer(program: Program) -> str:
    assert program.process.stdout is not None
    assert select.select([program.process.stdout], [], [], WAIT_S)[0], "the program hangs"
    return program.hear()


@pytest.mark.parametrize("touches_per_s_max", [0, 1 << 18], ids=["awake at once", "asleep"])
def test_dedup_at_rest_then_all_hell(stress: Path, deduper: Deduper, touches_per_s_max: int) -> None:
    with Program([str(stress), "3", str(SEED)]) as program:
        for round_number in range(1, 13):
            live = deduper.dedup([program.pid], touches_per_s_max=touches_per_s_max)
            if round_number % 3 == 0:
                live.restore(background_bytes_per_s=2 << 20)
            program.tell("go 300")
            assert _answer(program).startswith(f"{round_number} ok")
            if round_number % 3:
                live.restore()
            assert live.wait_complete(WAIT_S)


def test_dedup_in_the_middle_of_everything(stress: Path, deduper: Deduper) -> None:
    rounds = 0
    with Program([str(stress), "3", str(SEED + 1)]) as program:
        program.tell("run 6000")
        end = time.monotonic() + 5.5
        while time.monotonic() < end:
            image, file, bases, _ = deduper.encode([program.pid])
            try:
                live = deduper.server.evict(image, file, bases)
            except BusyError:  # a vfork or a full stack: the op gives up, the program goes on
                continue
            assert live.wait_complete(WAIT_S)
            rounds += 1
            Path(file.path).unlink()
        assert _answer(program).startswith("1 ok")
        assert rounds > 3
        program.tell("go 100")
        assert _answer(program).startswith("2 ok")
        # The server outlived all of it: it still takes and gives back.
        live = deduper.dedup([program.pid])
        program.tell("go 100")
        assert _answer(program).startswith("3 ok")
        live.restore()
        assert live.wait_complete(WAIT_S)


def test_agents_are_killed_in_the_middle_of_everything(stress: Path, tmp_path: Path) -> None:
    """Each takes over what the one before left, and is killed somewhere on its way; STRESS_KILLS says how many."""
    random_ = random.Random(SEED)
    with Program([str(stress), "3", str(SEED + 2)]) as program:
        assert program.process.stdout is not None
        program.tell("run 3600000")
        for n in range(KILLS):
            with subprocess.Popen(
                [sys.executable, "-m", "tests.fault.live_victim", str(program.pid), str(tmp_path), "loop"],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                text=True,
            ) as agent:
                assert agent.stdout is not None
                if random_.random() < 0.8:
                    assert agent.stdout.readline() == "looping\n", f"agent {n} could not go on"
                    time.sleep(random_.uniform(0, 0.15))
                else:
                    time.sleep(random_.uniform(0.1, 0.4))  # in the middle of taking over, or before
                agent.kill()
                assert agent.wait(WAIT_S) == -signal.SIGKILL
            assert not select.select([program.process.stdout], [], [], 0)[0], program.process.stdout.read()
        last = Deduper(tmp_path)
        take_over(last)
        last.close()
        assert not select.select([program.process.stdout], [], [], 0.2)[0], program.process.stdout.read()
