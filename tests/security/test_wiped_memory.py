"""What an agent's memory holds of a sandbox after an op: nothing but the store's files."""

from __future__ import annotations

import array
import contextlib
import itertools
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cluster import AgentProcess

pytestmark = pytest.mark.live
PAGE, PAGES_AT_ONCE = 4096, 1 << 20

# Pages that are stored raw (random, with a mark of this program's in it that no aligned word shows), compressed alone (a
# little of its own word in much text), and as patches (text that the base has as well, with its own word in it).
PROGRAM = """
import hashlib, random, signal, sys
own, mark = sys.stdin.readline().strip(), bytes.fromhex(sys.stdin.readline())
raw = [hashlib.shake_256(f"{own}-{i}".encode()).digest(4096) for i in range(300)]
raw = [page[:3] + mark + page[27:2043] + mark + page[2067:4068] + mark + page[4092:] for page in raw]
text = ("".join(f"{own}:{random.random()}" for i in range(20000))).encode()
shared = bytearray(hashlib.shake_256(b"shared").digest(1 << 20))
for at in range(0, len(shared), 4096):
    shared[at : at + len(own)] = own.encode()
print("ready", flush=True)
signal.pause()
"""


class Instance:
    def __init__(self) -> None:
        self.own = secrets.token_hex(16)
        self.mark = secrets.token_bytes(24)
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        with self.process.stdin as stdin:  # not as arguments: the agent may look at those
            stdin.write(f"{self.own}\n{self.mark.hex()}\n")
        assert self.process.stdout.readline() == "ready\n"

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def instances() -> Iterator[list[Instance]]:
    made = [Instance(), Instance()]
    yield made
    for instance in made:
        instance.end()


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[AgentProcess]:
    process = AgentProcess(tmp_path, "n0", "")
    process.start()
    yield process
    process.clean()


def found_in(pid: int, marks: list[bytes], but: str = "") -> dict[str, int]:
    """Mapping → how many of the marks lie in it; not in files whose path begins with `but`. Only pages that are there are
    read: an agent has reserved far more."""
    found = {}
    proc = Path(f"/proc/{pid}")
    area = name = ""
    for line in (proc / "smaps").read_text().splitlines():
        first = line.split(maxsplit=1)[0]
        if not first.endswith(":"):
            area, _, _, _, _, *path = line.split(maxsplit=5)
            name = path[0].strip() if path else "anonymous"
        elif first == "Rss:" and int(line.split()[1]) > 0 and not (but and name.startswith(but)):
            count = sum(mark in data for data in resident(proc, area) for mark in marks)
            if count:
                found[f"{area} {name}"] = count
    return found


def resident(proc: Path, area: str) -> Iterator[bytes]:
    """What of a mapping is there, in runs of pages."""
    begin, end = (int(part, 16) // PAGE for part in area.split("-"))
    if begin >= 1 << 47 >> 12:  # the kernel's
        return
    with (proc / "pagemap").open("rb") as pagemap, (proc / "mem").open("rb", buffering=0) as memory:
        for at in range(begin, end, PAGES_AT_ONCE):
            pagemap.seek(at * 8)
            entries = array.array("Q", pagemap.read(min(PAGES_AT_ONCE, end - at) * 8))
            if not any(entries):
                continue
            for there, run in itertools.groupby(range(len(entries)), lambda i, e=entries: e[i] >> 62 != 0):
                pages = list(run)
                if there:
                    memory.seek((at + pages[0]) * PAGE)
                    with contextlib.suppress(OSError):  # no program may read it, as [vvar]
                        yield memory.read(len(pages) * PAGE)


def test_nothing_of_a_sandbox_stays_in_the_agents_own_memory(
    agent: AgentProcess, instances: list[Instance]
) -> None:
    base, other = instances
    assert agent.process is not None
    pid, store = agent.process.pid, str(agent.shm)
    with agent.client() as client:
        client.register("f", pids=[base.process.pid], sandbox_id="base")
        client.dedup("base")
        client.register("f", pids=[other.process.pid], sandbox_id="other")
        for _ in range(2):  # the second time pages are taken over
            report = client.dedup("other").report
            assert report.gross_saved_bytes is not None
            assert report.patch_bytes > 300 * PAGE  # its random pages
            assert found_in(pid, [other.mark], store) == {}, "after the dedup op"
            client.restore("other", eager=True)
            # Threads that helped end a little after the last page is in.
            assert soon_nothing(pid, [other.mark], store) == {}, "after the restore"
        # Words that its pages have in common are known for as long as it is.
        client.purge("other")
        assert soon_nothing(pid, [other.mark, other.own.encode()], store) == {}, "after the purge"
    # The search finds what is there: in the sandbox itself.
    assert found_in(other.process.pid, [other.mark])


def soon_nothing(pid: int, marks: list[bytes], store: str) -> dict[str, int]:
    """What is found in the end, which is nothing if all goes well."""
    found: dict[str, int] = {}
    for _ in range(20):
        if not (found := found_in(pid, marks, store)):
            break
        time.sleep(0.1)
    return found
