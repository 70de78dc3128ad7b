"""Memory that a program guards itself: nobody of ours waits for its handler, and no byte of it changes."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from medes import native
from tests.support.live import Deduper, Program

pytestmark = pytest.mark.live
WAIT_S = 30.0

# `guard` takes the pages away and never answers for them; `forbid` and `allow` change what may be done with others.
GUARDED = """
import ctypes, fcntl, mmap, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
BYTES = 4 << 20
def region():
    memory = mmap.mmap(-1, BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.write(bytes(range(256)) * (BYTES // 256))
    return memory, ctypes.addressof(ctypes.c_char.from_buffer(memory))
(first, guarded), (second, forbidden) = region(), region()
def protect(how):
    assert libc.mprotect(ctypes.c_void_p(forbidden), ctypes.c_size_t(BYTES), how) == 0
print("ready", flush=True)
for line in sys.stdin:
    if line == "guard\\n":
        fd = libc.syscall(323, os.O_CLOEXEC)  # userfaultfd
        fcntl.ioctl(fd, 0xC018AA3F, bytearray(struct.pack("QQQ", 0xAA, 0, 0)))
        fcntl.ioctl(fd, 0xC020AA00, bytearray(struct.pack("QQQQ", guarded, BYTES, 1, 0)))
        assert libc.madvise(ctypes.c_void_p(guarded), ctypes.c_size_t(BYTES), 4) == 0
    elif line == "let go\\n":
        os.close(fd)
    elif line == "forbid\\n":
        protect(0)
    elif line == "allow\\n":
        protect(3)
    else:
        print("intact" if second[:] == bytes(range(256)) * (BYTES // 256) else "BROKEN", flush=True)
        continue
    print("done", flush=True)
"""


@pytest.fixture
def program() -> Iterator[Program]:
    with Program([sys.executable, "-c", GUARDED]) as made:
        yield made


def say(program: Program, word: str) -> str:
    program.tell(word)
    return program.hear()


def check_that_it_stays(program: Program, live: native.LiveSandbox) -> None:
    """What the program guards is not evicted, and all of its memory is right after the restore."""
    assert live.evict_result["changed_pages"] >= (4 << 20) // native.PAGE_BYTES
    live.restore(lazy=False)
    assert live.wait_complete(WAIT_S)
    assert say(program, "let go") == "done"
    assert say(program, "check") == "intact"


def test_an_op_ends_that_finds_memory_guarded_by_the_program(program: Program, deduper: Deduper) -> None:
    image = native.attach([program.pid])
    assert say(program, "guard") == "done"  # after it was seen, before it is read
    prints, locations, _ = native.survey(image, 8, deduper.index)
    plan = native.plan_windows(image, prints, locations)
    encoded = native.encode(image, plan, deduper.bases())
    file = native.SandboxFile.create(str(deduper.folder / "sandbox-1.medes"), b"{}", image, encoded)
    live = deduper.server.evict(image, file, deduper.bases())
    check_that_it_stays(program, live)


def test_memory_guarded_between_encoding_and_the_stop_stays(program: Program, deduper: Deduper) -> None:
    image, file, bases, _ = deduper.encode([program.pid])
    assert say(program, "guard") == "done"
    live = deduper.server.evict(image, file, bases)
    check_that_it_stays(program, live)


def test_memory_that_may_not_be_touched_comes_back(program: Program, deduper: Deduper) -> None:
    assert say(program, "forbid") == "done"
    for _ in range(2):
        live = deduper.dedup([program.pid])
        live.restore(lazy=False)
        assert live.wait_complete(WAIT_S)
    live = deduper.dedup([program.pid])
    assert say(program, "allow") == "done"
    assert say(program, "check") == "intact"
