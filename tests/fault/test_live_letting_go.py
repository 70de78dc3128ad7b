"""What a program gives back while its pages are out needs no serving: a mapping of which nothing is missing any more is
the kernel's alone again. One of which something is missing stays registered whole, so that it stays one mapping."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from medes import native
from tests.fault.live_victim import take_over
from tests.support.live import Deduper, Program

pytestmark = pytest.mark.live
ROOT = Path(__file__).parents[2]
WAIT_S = 30.0
ALL = 1 << 18  # more touches than the program has pages
PAGES = 512
# It has a mapping of pages that differ, alone between two that nobody may touch, and does what it is told with it.
PROGRAM = """
import ctypes, mmap, os, sys, threading
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = LIBC.mremap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
LIBC.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
LIBC.madvise.argtypes = LIBC.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
PAGE = 4096
def place(pages):
    return LIBC.mmap(None, (pages + 2) * PAGE, 0, 0x22, -1, 0) + PAGE
def lay(number, pages):
    at = place(pages)
    assert LIBC.mprotect(at, pages * PAGE, 3) == 0
    for page in range(pages):
        ctypes.memmove(at + page * PAGE, page_of(number, page), PAGE)
    return at
def page_of(number, page):
    return (number * 100000 + page + 1).to_bytes(8, "little") * (PAGE // 8)
def holds(at, number, first, end):
    return all(ctypes.string_at(at + page * PAGE, PAGE) == page_of(number, page) for page in range(first, end))
def zeros(at, first, end):
    return all(ctypes.string_at(at + page * PAGE, PAGE) == bytes(PAGE) for page in range(first, end))
def give_back(at, first, end):
    return LIBC.madvise(at + first * PAGE, (end - first) * PAGE, 4)
def move(at, pages, to):
    return LIBC.mremap(at, pages * PAGE, pages * PAGE, 3, to) == to
def forked(look):
    ends = os.pipe()
    if os.fork() == 0:
        os.write(ends[1], str(look()).encode())
        os._exit(0)
    answer = os.read(ends[0], 64).decode()
    os.wait()
    return answer
PAGES = int(sys.argv[2])
a, b = lay(1, PAGES), lay(2, PAGES)
for _ in range(int(sys.argv[1])):
    threading.Thread(target=threading.Event().wait, daemon=True).start()
print("ready", flush=True)
for number, line in enumerate(sys.stdin):
    print(number, eval(line), flush=True)
"""


@pytest.fixture(params=[0, 2], ids=["one thread", "three threads"])
def program(request: pytest.FixtureRequest) -> Iterator[Program]:
    with Program([sys.executable, "-c", PROGRAM, str(request.param), str(PAGES)]) as made:
        yield made


def registered(program: Program, name: str) -> list[bool]:
    """Of each mapping that lies in the PAGES at what the program calls `name`, whether page faults in it are ours."""
    begin = int(program.ask(name))
    end = begin + PAGES * 4096
    out, inside = [], False
    for line in Path(f"/proc/{program.pid}/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            low, high = (int(part, 16) for part in first.split("-"))
            inside = low < end and high > begin
        elif inside and first == "VmFlags:":
            out.append("um" in line.split())
    return out


def comes_to_be(program: Program, name: str, what: list[bool]) -> bool:
    """A program of one thread runs on while its mapping is let go."""
    deadline = time.monotonic() + WAIT_S
    while (now := registered(program, name)) != what and time.monotonic() < deadline:
        time.sleep(0.01)
    return now == what


def asleep(deduper: Deduper, program: Program) -> native.LiveSandbox:
    live = deduper.dedup([program.pid], touches_per_s_max=ALL)
    assert registered(program, "a") == registered(program, "b") == [True]
    return live


def awake(program: Program, live: native.LiveSandbox) -> None:
    live.restore()
    assert live.wait_complete(WAIT_S)


def test_a_mapping_that_is_given_back_is_let_go(deduper: Deduper, program: Program) -> None:
    live = asleep(deduper, program)
    assert program.ask("give_back(a, 0, PAGES)") == "0"
    assert comes_to_be(program, "a", [False])
    zeros = live.stats()["pages_zero"]
    assert program.ask("ctypes.memset(a, 7, PAGES * PAGE) == a") == "True"
    assert live.stats()["pages_zero"] - zeros < PAGES // 2  # those of other memory
    assert program.ask("holds(b, 2, 0, PAGES)") == "True"
    awake(program, live)
    assert program.ask("ctypes.string_at(a, PAGES * PAGE) == bytes([7]) * PAGES * PAGE") == "True"
    live = deduper.dedup([program.pid], touches_per_s_max=ALL)
    assert registered(program, "a") == [True]
    assert program.ask("ctypes.string_at(a, PAGES * PAGE) == bytes([7]) * PAGES * PAGE") == "True"


def test_little_by_little(deduper: Deduper, program: Program) -> None:
    live = asleep(deduper, program)
    for first in (PAGES // 2, 0, 3 * PAGES // 4):
        assert program.ask(f"give_back(a, {first}, {first + PAGES // 4})") == "0"
        assert registered(program, "a") == [True]
    half = PAGES // 4
    assert program.ask(f"holds(a, 1, {half}, {2 * half}) and zeros(a, 0, {half})") == "True"
    assert program.ask(f"zeros(a, {2 * half}, PAGES)") == "True"
    assert registered(program, "a") == [True]
    assert program.ask(f"give_back(a, {half}, {half + 1})") == "0"  # the rest is back by touches
    assert comes_to_be(program, "a", [False])
    assert program.ask(f"holds(a, 1, {half + 1}, {2 * half}) and zeros(a, {half}, {half + 1})") == "True"
    awake(program, live)
    assert program.ask("holds(b, 2, 0, PAGES)") == "True"


def test_what_is_left_of_a_mapping_is_let_go(deduper: Deduper, program: Program) -> None:
    live = asleep(deduper, program)
    assert program.ask("holds(a, 1, 0, 4) and holds(a, 1, PAGES - 4, PAGES)") == "True"
    assert registered(program, "a") == [True]
    assert program.ask("LIBC.munmap(a + 4 * PAGE, (PAGES - 8) * PAGE)") == "0"
    assert comes_to_be(program, "a", [False, False])
    assert program.ask("holds(a, 1, 0, 4) and holds(a, 1, PAGES - 4, PAGES)") == "True"
    awake(program, live)
    assert program.ask("holds(b, 2, 0, PAGES)") == "True"


@pytest.mark.parametrize("given", [0, PAGES // 2], ids=["all out", "half given back"])
def test_a_mapping_of_which_pages_are_out_stays_one(deduper: Deduper, program: Program, given: int) -> None:
    """mremap takes one mapping: where only what is missing were registered there would be several."""
    live = asleep(deduper, program)
    assert program.ask(f"give_back(a, 0, {given})") == "0"
    assert registered(program, "a") == [True]
    assert program.ask("[c := place(PAGES), move(a, PAGES, c)][1]") == "True"
    assert program.ask(f"zeros(c, 0, {given}) and holds(c, 1, {given}, PAGES)") == "True"
    awake(program, live)
    assert program.ask("holds(b, 2, 0, PAGES)") == "True"


def test_a_mapping_that_has_moved_is_let_go_where_it_is(deduper: Deduper, program: Program) -> None:
    live = asleep(deduper, program)
    assert program.ask("[c := place(PAGES), move(a, PAGES, c)][1]") == "True"
    assert registered(program, "c") == [True]
    assert program.ask("give_back(c, 0, PAGES)") == "0"
    assert comes_to_be(program, "c", [False])
    assert program.ask("zeros(c, 0, PAGES) and holds(b, 2, 0, PAGES)") == "True"
    awake(program, live)


def test_missing_memory_comes_to_where_one_was_let_go(deduper: Deduper, program: Program) -> None:
    live = asleep(deduper, program)
    assert program.ask("give_back(a, 0, PAGES)") == "0"
    assert program.ask("ctypes.memset(a, 7, PAGES * PAGE) == a") == "True"
    assert program.ask("move(b, PAGES, a)") == "True"
    assert registered(program, "a") == [True]
    assert program.ask("holds(a, 2, 0, PAGES)") == "True"
    awake(program, live)
    assert program.ask("holds(a, 2, 0, PAGES)") == "True"


def test_mappings_that_mprotect_has_cut(deduper: Deduper, program: Program) -> None:
    live = asleep(deduper, program)
    quarter = PAGES // 4
    assert program.ask(f"LIBC.mprotect(a + {quarter} * PAGE, {quarter} * PAGE, 1)") == "0"
    assert registered(program, "a") == [True] * 3
    assert program.ask("give_back(a, 0, PAGES)") == "0"
    assert comes_to_be(program, "a", [False] * 3)
    assert program.ask(f"LIBC.mprotect(a + {quarter} * PAGE, {quarter} * PAGE, 3)") == "0"
    assert comes_to_be(program, "a", [False])  # one again
    assert program.ask("zeros(a, 0, PAGES) and holds(b, 2, 0, PAGES)") == "True"
    awake(program, live)


def test_a_child_forked_afterwards_is_whole(deduper: Deduper, program: Program) -> None:
    live = asleep(deduper, program)
    assert program.ask("give_back(a, 0, PAGES)") == "0"
    assert program.ask("ctypes.memset(a, 7, PAGE) == a") == "True"
    look = "ctypes.string_at(a, PAGE) == bytes([7]) * PAGE and zeros(a, 1, PAGES) and holds(b, 2, 0, PAGES)"
    assert program.ask(f"forked(lambda: {look})") == "True"
    assert live.wait_complete(WAIT_S)
    assert program.ask(look) == "True"


def test_the_next_server_knows_nothing_of_it_and_need_not(tmp_path: Path, program: Program) -> None:
    deduper = Deduper(tmp_path)
    image, file, bases, _ = deduper.encode([program.pid])
    deduper.server.evict(image, file, bases, touches_per_s_max=ALL)
    assert program.ask("give_back(a, 0, PAGES)") == "0"
    assert comes_to_be(program, "a", [False])
    assert program.ask("ctypes.memset(a, 7, PAGE) == a") == "True"
    deduper.close()
    server = native.FaultServer()
    live = server.adopt(native.SandboxFile.open(file.path), deduper.bases(), touches_per_s_max=ALL)
    look = "ctypes.string_at(a, PAGE) == bytes([7]) * PAGE and zeros(a, 1, PAGES) and holds(b, 2, 0, PAGES)"
    assert program.ask(look) == "True"
    assert program.ask("give_back(b, 0, PAGES)") == "0"
    assert comes_to_be(program, "b", [False])
    awake(program, live)
    assert program.ask("zeros(b, 0, PAGES)") == "True"
    server.close()


def test_an_agent_is_killed_while_it_lets_go(tmp_path: Path, program: Program) -> None:
    agent = subprocess.Popen(
        [sys.executable, "-m", "tests.fault.live_victim", str(program.pid), str(tmp_path), "linger"],
        cwd=ROOT,
        env={**os.environ, "MEDES_FAULT": "restore.let_go"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert agent.stdout is not None
    with agent:
        assert [agent.stdout.readline(), agent.stdout.readline()] == ["dormant\n", "restoring\n"]
        program.tell("give_back(b, 0, PAGES)")
        assert agent.wait(WAIT_S) == -signal.SIGKILL
    deduper = Deduper(tmp_path)
    take_over(deduper)
    assert program.hear() == "0 0"
    assert program.ask("zeros(b, 0, PAGES) and holds(a, 1, 0, PAGES)") == "True"
    deduper.close()


def test_no_server_takes_pages_from_where_they_were_let_go(tmp_path: Path, program: Program) -> None:
    """They came back, and are what is stored; but nobody would bring them a second time."""
    look = "holds(a, 1, 0, 4) and holds(a, 1, PAGES - 4, PAGES)"
    deduper = Deduper(tmp_path)
    image, file, bases, _ = deduper.encode([program.pid])
    live = deduper.server.evict(image, file, bases, touches_per_s_max=ALL)
    assert program.ask(look) == "True"
    assert program.ask("LIBC.munmap(a + 4 * PAGE, (PAGES - 8) * PAGE)") == "0"
    assert comes_to_be(program, "a", [False, False])
    live.reclaim()
    assert program.ask(look) == "True"
    deduper.close()
    server = native.FaultServer()
    live = server.adopt(native.SandboxFile.open(file.path), deduper.bases(), touches_per_s_max=ALL)
    live.reclaim()
    assert program.ask(look) == "True"
    awake(program, live)
    assert program.ask(f"{look} and holds(b, 2, 0, PAGES)") == "True"
    server.close()
