"""Letting go of a sandbox in the very moment in which it forks: the child's memory is nobody's but the agent's."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from medes import native
from tests.support.live import Deduper, Program

pytestmark = pytest.mark.live
WAIT_S = 30.0
# Tells by its exit status whether the child had the right bytes.
FORK = (
    "exec (lambda os, pid: os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) if pid else"
    " os._exit(hashlib.sha256(b''.join(big)).hexdigest() != digest))(*(lambda os: (os, os.fork()))(__import__('os')))"
)
# Threads with a tracer of their own are not held, which is tried for some 50 ms before the event is read.
TRACER = """
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
assert libc.ptrace(0x4206, int(sys.argv[1]), None, None) == 0, ctypes.get_errno()
print("traced", flush=True)
sys.stdin.readline()
"""
CLONE_CALLS = ("56", "435")  # clone, clone3


def _wait_for_fork(pid: int) -> None:
    """Until its main thread is inside fork, waiting for its event to be read."""
    deadline = time.monotonic() + WAIT_S
    while Path(f"/proc/{pid}/syscall").read_text().split()[0] not in CLONE_CALLS:
        assert time.monotonic() < deadline, "it does not fork"


@pytest.mark.parametrize("by", ["detach", "close"])
def test_let_go_while_it_forks(deduper: Deduper, by: str) -> None:
    with Program() as program:
        live = deduper.dedup([program.pid])
        live.restore(background_bytes_per_s=1 << 20)
        with Program([sys.executable, "-c", TRACER, str(program.pid)], ready="traced\n"):
            program.tell(FORK)
            _wait_for_fork(program.pid)
            if by == "detach":
                live.detach()
            else:
                deduper.server.close()
            assert live.state != "complete"
        del live
        deduper.server.close()
        file = native.SandboxFile.open(str(deduper.folder / "sandbox-1.medes"))
        deduper.server = native.FaultServer(2)  # the one before is no more, with all that it held
        live = deduper.server.adopt(file, deduper.bases())
        assert program.hear() == "1 0"
        live.restore()
        assert live.wait_complete(WAIT_S)
        assert program.ask("check") == "intact"
        assert not list(deduper.folder.glob("*.child-*"))
