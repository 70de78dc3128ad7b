"""Capture of a real process: what is found, where it lies, and that the bytes are right."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from medes import native
from medes.errors import InvalidArgumentError, MedesError, NotFoundError, ProcessGoneError, TracedError

CHILD = """
import sys
data = bytearray(b"medes-capture-" * 100_000)
print("ready", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def child() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


def _capture(pid: int) -> native.MemoryImage:
    try:
        return native.capture([pid])
    except MedesError as error:
        if error.code == "permission_denied":
            pytest.skip(f"capture cannot run here: {error}")
        raise


def test_capture_copies_the_private_memory(child: subprocess.Popen[str]) -> None:
    image = _capture(child.pid)
    assert image.pids == [child.pid]
    assert image.page_count > 500  # an interpreter plus 1.4 MB of our own
    content = image.pages(0, image.page_count)
    assert content.count(b"medes-capture-") >= 100_000 - 2 * 1_400_000 // native.PAGE_BYTES
    assert 1 <= len(image.ranges) <= 8
    assert not image.value_only
    assert child.poll() is None


def test_sizes_and_start_time(child: subprocess.Popen[str]) -> None:
    image = _capture(child.pid)
    assert native.private_bytes([child.pid]) >= image.page_count * native.PAGE_BYTES // 2
    assert native.process_start_time(child.pid) > 0
    assert native.process_start_time(child.pid) == native.process_start_time(child.pid)


def test_only_what_lives_has_a_living_start_time() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        ticks = native.process_start_time(child.pid)
        assert native.living_start_time(child.pid) == ticks
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it is there still, as a zombie
        assert native.process_start_time(child.pid) == ticks
        assert native.living_start_time(child.pid) == 0
    assert native.living_start_time(child.pid) == 0


def test_pages_shared_since_a_fork_count_once() -> None:
    code = """
import os, sys, signal
data = bytearray(os.urandom(1 << 20) * 8)
print("ready", flush=True)
sys.stdin.readline()
for worker in range(2):
    if os.fork() == 0:
        signal.pause()
print("ready", flush=True)
sys.stdin.readline()
data[::4096] = bytes(len(data[::4096]))
print("ready", flush=True)
signal.pause()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        sizes, tree = [], []
        try:
            for _ in range(3):
                assert process.stdout.readline() == "ready\n"
                tree = native.process_tree([process.pid])
                sizes.append(native.private_bytes(tree))
                process.stdin.write("\n")
                process.stdin.flush()
        finally:
            for pid in reversed(tree):
                os.kill(pid, signal.SIGKILL)
    alone, forked, written = sizes
    assert len(tree) == 3
    assert alone > 8 << 20
    # Page tables and what the interpreters wrote since differ; the eight megabytes are there once.
    assert abs(forked - alone) < 3 << 20
    # The parent has copies of its own now; the workers still share the old ones.
    assert 7 << 20 < written - forked < 9 << 20


def test_process_tree_lists_children_after_roots(child: subprocess.Popen[str]) -> None:
    tree = native.process_tree([os.getpid()])
    assert tree[0] == os.getpid()
    assert child.pid in tree


def test_a_process_that_is_gone(child: subprocess.Popen[str]) -> None:
    child.kill()
    child.wait()
    with pytest.raises(ProcessGoneError):
        native.capture([child.pid])
    with pytest.raises(ProcessGoneError):
        native.process_tree([child.pid])


def test_a_cgroup_that_does_not_exist_is_named_once() -> None:
    with pytest.raises(NotFoundError) as caught:
        native.cgroup_pids("/nonexist")
    assert str(caught.value) == "/nonexist/cgroup.procs: cannot open: No such file or directory"


def test_no_process_is_invalid() -> None:
    with pytest.raises(InvalidArgumentError):
        native.capture([])


def test_a_second_tracer_is_reported(child: subprocess.Popen[str]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    seize, detach_by_exit = 0x4206, None
    tracer = os.fork()
    if tracer == 0:  # the tracer must be another process: we capture in this one
        ok = libc.ptrace(seize, child.pid, detach_by_exit, None) == 0
        os.write(1, b"")
        os.kill(os.getpid(), 19 if ok else 9)
        os._exit(0)
    _, status = os.waitpid(tracer, os.WUNTRACED)
    try:
        if not os.WIFSTOPPED(status):
            pytest.skip("ptrace is not permitted here")
        with pytest.raises(TracedError):
            native.capture([child.pid])
    finally:
        os.kill(tracer, 9)
        os.waitpid(tracer, 0)


def test_from_buffer_round_trip() -> None:
    image = native.MemoryImage.from_buffer(b"x" * 5000, address=0x10000, value_only=False)
    assert image.page_count == 2
    assert image.ranges == [(0x10000, 0x12000)]
    assert image.page(0) == b"x" * 4096
    assert image.pages(1, 1) == b"x" * 904 + bytes(3192)
    with pytest.raises(InvalidArgumentError):
        image.page(2)
