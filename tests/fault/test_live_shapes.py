"""Programs whose memory others hold, see or share: right bytes, or one refusal that names the cause."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from medes.errors import BusyError, LimitExceededError, UnsupportedError
from tests.support.cluster import wait_until
from tests.support.live import Deduper, Program

pytestmark = pytest.mark.live
WAIT_S = 30.0
KERNEL = tuple(map(int, os.uname().release.split("-")[0].split(".")[:2]))
CLONE_VM, CLONE_VFORK, CLONE_PARENT = 0x100, 0x4000, 0x8000


def _define(program: Program, source: str) -> None:
    """Defines names in the program, which answers expressions only."""
    assert program.ask(f"exec exec({source!r}, globals())") == "None"


# --- fork while pages are missing ------------------------------------------------------------------------
def test_a_child_sees_zeros_where_its_parent_asked_for_that(deduper: Deduper, program: Program) -> None:
    _define(
        program,
        "import mmap\n"
        "wiped = mmap.mmap(-1, 65536, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n"
        "wiped.madvise(18)\n"  # MADV_WIPEONFORK
        "wiped[:] = b'A' * 65536\n"
        "def forked():\n"
        "    ends = os.pipe()\n"
        "    if os.fork() == 0:\n"
        "        os.write(ends[1], (state() + (' zeros' if not any(wiped[:]) else ' BYTES')).encode())\n"
        "        os._exit(0)\n"
        "    os.wait()\n"
        "    return os.read(ends[0], 64).decode()\n",
    )
    for _ in range(2):
        live = deduper.dedup([program.pid])
        assert program.ask("exec forked()") == "intact zeros"
        assert program.ask("exec set(wiped[:]) == {65}") == "True"
        assert live.wait_complete(WAIT_S)


# --- guard regions ---------------------------------------------------------------------------------------
GUARD = """
import errno, mmap
mine = mmap.mmap(-1, 1 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
mine[:] = os.urandom(1 << 20)
rest = bytes(mine[1 << 19:])
ends = os.pipe()
def guarded(page):
    try:
        os.read(ends[0], os.write(ends[1], memoryview(mine)[page * 4096:page * 4096 + 8]))
    except OSError as error:
        return error.errno == errno.EFAULT
    return False
def guard():
    mine.madvise(102, 0, 1 << 19)  # MADV_GUARD_INSTALL
def look():
    return f"{sum(map(guarded, range(128)))} {bytes(mine[1 << 19:]) == rest}"
def forked():
    answer = os.pipe()
    if os.fork() == 0:
        os.write(answer[1], look().encode())
        os._exit(0)
    os.wait()
    return os.read(answer[0], 64).decode()
"""


@pytest.mark.skipif(KERNEL < (6, 15), reason="no guard regions, or the page map does not show them")
def test_no_page_comes_back_into_a_guard_region(deduper: Deduper, program: Program) -> None:
    """No event tells that one was made over missing pages, and the kernel would place pages there."""
    _define(program, GUARD)
    live = deduper.dedup([program.pid])
    assert program.ask("exec guard()") == "None"
    assert program.ask("exec forked()") == "128 True"
    live.restore(lazy=False)
    assert live.wait_complete(WAIT_S)
    assert program.ask("exec look()") == "128 True"
    assert program.ask("check") == "intact"


@pytest.mark.skipif(KERNEL < (6, 15), reason="no guard regions, or the page map does not show them")
def test_no_zeros_come_into_a_guard_region(deduper: Deduper, program: Program) -> None:
    """New memory is given in runs, which end before a guard."""
    _define(program, GUARD)
    _define(
        program,
        "fresh = mmap.mmap(-1, 1 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n"
        "fresh[0] = 1\n"
        "def guard_fresh():\n"
        "    fresh.madvise(102, 5 * 4096, 4096)\n"
        "    fresh[4096], fresh[6 * 4096] = 2, 3\n"
        "    global mine\n"
        "    mine = fresh\n"
        "    return [page for page in range(256) if guarded(page)]\n",
    )
    live = deduper.dedup([program.pid], touches_per_s_max=1 << 18)
    assert program.ask("exec guard_fresh()") == "[5]"
    assert live.stats()["pages_zero"] > 200
    live.restore()
    assert live.wait_complete(WAIT_S)
    assert program.ask("exec [fresh[page * 4096] for page in (0, 1, 4, 6, 7)]") == "[1, 2, 0, 3, 0]"
    assert program.ask("check") == "intact"


DAEMON = """
import hashlib, os, sys
big = [hashlib.sha256(str(i).encode()).digest() * 64 for i in range(4000)]
digest = hashlib.sha256(b"".join(big)).hexdigest()
print("ready", flush=True)
sys.stdin.readline()
if os.fork() == 0:
    if os.fork() == 0:
        sys.stdin.readline()
        print("intact" if hashlib.sha256(b"".join(big)).hexdigest() == digest else "BROKEN", flush=True)
os._exit(0)
"""


def test_who_forks_twice_and_ends_leaves_a_whole_grandchild(deduper: Deduper) -> None:
    for _ in range(8):
        with Program([sys.executable, "-c", DAEMON]) as program:
            live = deduper.dedup([program.pid])
            program.tell("daemon")
            program.process.wait(WAIT_S)
            # Neither while the last page is in and the restore's end is not told yet.
            wait_until(
                lambda live=live: live.needed or live.state == "complete", "needed, or all pages are in"
            )
            program.tell("check")
            assert program.hear() == "intact"


# --- one memory, several processes -----------------------------------------------------------------------
def _clone(program: Program, flags: int) -> str:
    """An expression that makes a process on the program's own memory, which sleeps."""
    _define(
        program,
        "import ctypes\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "stack = ctypes.create_string_buffer(65536)\n"
        f"def clone(): return libc.clone(libc.pause, ctypes.c_void_p(ctypes.addressof(stack) + 65520), {flags}, None)\n",
    )
    return "clone()"


def test_a_process_outside_that_shares_the_memory_is_found(deduper: Deduper, program: Program) -> None:
    sharer = int(program.ask("exec " + _clone(program, CLONE_VM | CLONE_PARENT | signal.SIGCHLD)))
    assert sharer > 0
    try:
        with pytest.raises(UnsupportedError, match=f"shares its memory with process {sharer}"):
            deduper.dedup([program.pid])
        assert program.ask("check") == "intact"
    finally:
        os.kill(sharer, signal.SIGKILL)
        os.waitpid(sharer, 0)
    live = deduper.dedup([program.pid])
    assert program.ask("check") == "intact"
    assert live.wait_complete(WAIT_S)


def test_a_vfork_under_way_is_busy(deduper: Deduper, program: Program) -> None:
    call = _clone(program, CLONE_VM | CLONE_VFORK | signal.SIGCHLD)
    _define(program, f"thread = threading.Thread(target=lambda: {call}, daemon=True)")
    program.ask("exec thread.start()")
    children = Path(f"/proc/{program.pid}/task")
    child = 0
    while child == 0:
        found = [text for t in children.glob("*/children") if (text := t.read_text())]
        child = int(found[0]) if found else 0
    with pytest.raises(BusyError, match="vfork"):
        deduper.dedup([program.pid])
    os.kill(child, signal.SIGKILL)
    program.ask("exec thread.join()")
    live = deduper.dedup([program.pid])
    assert program.ask("check") == "intact"
    assert live.wait_complete(WAIT_S)


# --- who looks from outside ------------------------------------------------------------------------------
READER = """
import ctypes, itertools, sys
class Span(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("bytes", ctypes.c_size_t)]
libc = ctypes.CDLL(None, use_errno=True)
pid, begin, pages = map(int, sys.argv[1:])
room = ctypes.create_string_buffer(64)
for n in itertools.count(1):
    at = begin + n * 2654435761 // 256 % pages * 4096
    here, there = Span(ctypes.addressof(room), 64), Span(at, 64)
    if libc.process_vm_readv(pid, ctypes.byref(here), 1, ctypes.byref(there), 1, 0) != 64:
        sys.exit("the memory is not there")
    if n % 64 == 0:
        print(n, flush=True)
"""


def _largest_mapping(pid: int) -> tuple[int, int]:
    ranges = [
        line.split()[0].split("-")
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines()
        if "rw-p" in line
    ]
    begin, end = max(((int(b, 16), int(e, 16)) for b, e in ranges), key=lambda r: r[1] - r[0])
    return begin, (end - begin) // 4096


def test_a_reader_that_falls_into_the_eviction_is_answered(deduper: Deduper, program: Program) -> None:
    """As a profiler reads: an event of its fault that is read by the eviction and forgotten leaves it hanging."""
    begin, pages = _largest_mapping(program.pid)
    command = [sys.executable, "-c", READER, *map(str, (program.pid, begin, pages))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as reader:
        seen = threading.Semaphore(0)
        out = reader.stdout
        assert out is not None
        listener = threading.Thread(target=lambda: [seen.release() for _ in out], daemon=True)
        listener.start()
        try:
            for _ in range(8):
                live = deduper.dedup([program.pid])
                while seen.acquire(blocking=False):
                    pass
                for _ in range(4):
                    assert seen.acquire(timeout=WAIT_S), "the reader hangs"
                live.restore(lazy=False)
                assert live.wait_complete(WAIT_S)
        finally:
            reader.kill()
            listener.join(WAIT_S)
    assert program.ask("check") == "intact"


def test_arguments_and_environment_are_there_for_others_to_see(deduper: Deduper) -> None:
    environment = {**os.environ, "LONG": "x" * 40000}
    command = [sys.executable, "-c", DAEMON, "find-me", "y" * 9000]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    try:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        files = [Path(f"/proc/{process.pid}/{name}") for name in ("cmdline", "environ")]
        before = [f.read_bytes() for f in files]
        assert b"find-me" in before[0]
        live = deduper.dedup([process.pid])
        assert [f.read_bytes() for f in files] == before
        assert live.state == "dormant"
    finally:
        process.kill()
        process.communicate()


# --- descriptors -----------------------------------------------------------------------------------------
WITHOUT_STANDARD_FILES = """
import fcntl, os, sys
heap = os.urandom(1 << 20) * 16
ask, answer = fcntl.fcntl(0, fcntl.F_DUPFD, 50), fcntl.fcntl(1, fcntl.F_DUPFD, 60)
os.write(answer, b"ready\\n")
for fd in range(3):
    os.close(fd)
while os.read(ask, 100):
    files = []
    for fd in range(3):
        try:
            os.write(fd, b"x")
            files.append(str(fd))
        except OSError:
            pass
    lowest = os.open("/dev/null", os.O_RDWR)
    os.close(lowest)
    os.write(answer, f"lowest {lowest}, open {files}\\n".encode())
"""


def test_the_lowest_descriptors_stay_the_programs(deduper: Deduper) -> None:
    with Program([sys.executable, "-c", WITHOUT_STANDARD_FILES]) as program:
        for _ in range(2):
            live = deduper.dedup([program.pid])
            live.restore(lazy=False)
            assert live.wait_complete(WAIT_S)
            program.tell("look")
            assert program.hear() == "lowest 0, open []"


def test_no_descriptor_left_is_said_as_such(deduper: Deduper, program: Program) -> None:
    _define(program, "import resource\nfd = os.dup(0)\nos.close(fd)\n")
    limit = "exec resource.setrlimit(resource.RLIMIT_NOFILE, (fd + {0}, fd + {0}))"
    program.ask("exec resource.prlimit(0, resource.RLIMIT_NOFILE)")
    program.ask(limit.format(0))
    with pytest.raises(LimitExceededError, match="RLIMIT_NOFILE"):
        deduper.dedup([program.pid])
    assert program.ask("check") == "intact"


def test_the_last_free_descriptor_is_enough(deduper: Deduper, program: Program) -> None:
    _define(program, "import resource\nfd = os.dup(0)\nos.close(fd)\n")
    program.ask("exec resource.setrlimit(resource.RLIMIT_NOFILE, (fd + 1, fd + 1))")
    live = deduper.dedup([program.pid])
    assert program.ask("check") == "intact"
    assert live.wait_complete(WAIT_S)


# --- waking at once --------------------------------------------------------------------------------------
def test_what_wakes_at_once_prefetches(deduper: Deduper, program: Program) -> None:
    program.ask("touch")
    live = deduper.dedup([program.pid])
    live.restore(background_bytes_per_s=5 << 20)
    program.ask("touch")
    recorded = live.working_set()
    assert live.wait_complete(WAIT_S)
    image, file, bases, _ = deduper.encode([program.pid])
    program.tell("touch")  # it runs, and is let go in the middle of that, or touches what went
    live = deduper.server.evict(image, file, bases, working_set=recorded)
    program.hear()
    assert program.ask("check") == "intact"
    assert live.wait_complete(WAIT_S)
    stats = live.stats()
    assert stats["demand_woken"] == 1
    assert stats["pages_prefetched"] > 0


# --- seccomp ---------------------------------------------------------------------------------------------
def test_an_agent_with_a_filter_says_that_it_is_the_reason(tmp_path: Path) -> None:
    filtered = "from tests.support.seccomp import Filter; Filter().load()\n" + DAEMON
    with Program([sys.executable, "-c", filtered]) as program:
        command = [sys.executable, "-m", "tests.fault.filtered_agent", str(program.pid), str(tmp_path)]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=True).stdout
        reason, error = answer.splitlines()
        assert "seccomp filter itself" in reason
        assert error.startswith("permission_denied: ") and reason in error
        deduper = Deduper(tmp_path / "free")
        (tmp_path / "free").mkdir(0o700)
        live = deduper.dedup([program.pid])  # this agent has none
        live.restore(lazy=False)
        assert live.wait_complete(WAIT_S)
        deduper.close()


# --- memory registered with a socket ---------------------------------------------------------------------
UMEM = """
import mmap, socket, struct, ctypes
mine = mmap.mmap(-1, 1 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
mine[:] = os.urandom(1 << 20)
first = bytes(mine)
address = ctypes.addressof(ctypes.c_char.from_buffer(mine))
link = socket.socket(44, socket.SOCK_RAW)  # AF_XDP
link.setsockopt(283, 4, struct.pack("QQIII", address, 1 << 20, 4096, 0, 0) + bytes(4))  # XDP_UMEM_REG
def frames():
    # The number of the page frame at each page; only root is shown it.
    with open("/proc/self/pagemap", "rb") as file:
        file.seek(address // 4096 * 8)
        return [n & (1 << 55) - 1 for n in struct.unpack("256Q", file.read(2048))]
before = frames()
"""


def test_memory_of_an_xdp_socket_is_found_though_no_ring_is_mapped(
    deduper: Deduper, program: Program
) -> None:
    """The socket reads and writes the frames that it was given: they must stay the program's."""
    try:
        _define(program, UMEM)
    except AssertionError:
        pytest.skip("this kernel has no AF_XDP")
    for eager in (False, True):
        live = deduper.dedup([program.pid])
        assert any("a socket's registered memory may hold on to stay" in note for note in live.notes)
        live.restore(lazy=not eager)
        assert live.wait_complete(WAIT_S)
        assert program.ask("exec frames() == before and any(before)") == "True"
        assert program.ask("exec bytes(mine) == first") == "True"


# --- memory on its way -----------------------------------------------------------------------------------
VMSPLICED = """
import ctypes, mmap
libc = ctypes.CDLL(None, use_errno=True)
lent = mmap.mmap(-1, 65536, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
lent[:] = os.urandom(65536)
given, ends = bytes(lent), os.pipe()
class Part(ctypes.Structure):
    _fields_ = [("at", ctypes.c_void_p), ("bytes", ctypes.c_size_t)]
part = Part(ctypes.addressof(ctypes.c_char.from_buffer(lent)), 65536)
assert libc.vmsplice(ends[1], ctypes.byref(part), ctypes.c_ulong(1), 0) == 65536
"""
DIRECT = """
import mmap
into = mmap.mmap(-1, 1 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
wanted = os.urandom(1 << 20)
with open({path!r}, "wb") as file:
    file.write(wanted)
fd = os.open({path!r}, os.O_RDONLY | os.O_DIRECT)
reads, wrong = 0, 0
def read():
    global reads, wrong
    while True:
        into[:] = bytes(1 << 20)
        done = os.preadv(fd, [into], 0)
        wrong += done != 1 << 20 or into[:] != wanted
        reads += 1
assert os.preadv(fd, [into], 0) == 1 << 20
threading.Thread(target=read, daemon=True).start()
"""


def test_pages_in_a_pipe_hold_what_they_were_given(deduper: Deduper, program: Program) -> None:
    _define(program, VMSPLICED)
    live = deduper.dedup([program.pid])
    assert program.ask("exec os.read(ends[0], 65536) == given") == "True"
    assert program.ask("exec bytes(lent) == given") == "True"
    assert live.wait_complete(WAIT_S)


def test_reads_past_the_page_cache_arrive(deduper: Deduper, program: Program, tmp_path: Path) -> None:
    """A device writes to the pages while the program sleeps in the call: the op waits for it, or gives up."""
    path = str(tmp_path / "direct")
    try:
        _define(program, DIRECT.format(path=path))
    except AssertionError:
        pytest.skip("this file system has no O_DIRECT")
    done = 0
    for _ in range(20):
        try:
            live = deduper.dedup([program.pid])
        except BusyError:
            continue
        done += 1
        assert live.wait_complete(WAIT_S) or live.state == "restoring"
        assert program.ask("exec wrong") == "0"
    assert done > 0
    before = int(program.ask("exec reads"))
    wait_until(lambda: int(program.ask("exec reads")) > before, "reads go on")
    assert program.ask("exec wrong") == "0"
