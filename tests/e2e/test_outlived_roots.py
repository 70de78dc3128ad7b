"""A process whose registered root has died is the sandbox's still: it keeps its pages, and a purge ends it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from medes import native
from medes.client import MedesClient
from medes.drivers.process.forks import Forks
from medes.drivers.process.processes import start_time
from medes.drivers.process.subjects import ProcessSubjects
from medes.drivers.subject import Asked
from medes.errors import NotFoundError
from medes.types import SandboxState as S
from tests.support.cluster import AgentProcess, Cluster, wait_until

pytestmark = [pytest.mark.live, pytest.mark.slow]

MakeCluster = Callable[..., Cluster]

# The root fills memory and forks an heir (or does so when it is told), which answers what it sees of it.
FAMILY = """
import hashlib, os, signal, socket, sys
path, later = sys.argv[1], sys.argv[2] == "later"
data = [hashlib.sha256(str(i).encode()).digest() * 64 for i in range(2000)]
listener = socket.socket(socket.AF_UNIX)
listener.bind(path)
listener.listen(8)
def heir():
    while True:
        connection, _ = listener.accept()
        digest = hashlib.sha256(b"".join(data)).hexdigest()
        connection.sendall(f"{os.getpid()} {digest}".encode())
        connection.close()
if later:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    print("ready", flush=True)
    signal.sigwait([signal.SIGUSR1])
    left = os.pipe()
    if os.fork() == 0:
        if sys.argv[3] == "leaves":
            os.setsid()
        os.write(left[1], b"x")
        heir()
    os.read(left[0], 1)
    os._exit(0)
elif os.fork() == 0:
    heir()
print("ready", flush=True)
signal.pause()
"""


class Family:
    """A root and what it forked."""

    def __init__(self, path: Path, when: str, session: str) -> None:
        self.path = str(path)
        self.root = subprocess.Popen(
            [sys.executable, "-c", FAMILY, self.path, when, session],
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=session != "none",
        )
        assert self.root.stdout is not None
        assert self.root.stdout.readline() == "ready\n"
        self.heir = 0
        self.digest = ""
        if when == "now":
            self.ask()

    def ask(self) -> None:
        """The heir sees every byte as it was."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(30.0)
            connection.connect(self.path)
            answer = connection.recv(200)
            if not answer:
                raise ConnectionResetError(self.path)
            pid, digest = answer.decode().split()
        self.heir = int(pid)
        self.digest = self.digest or digest
        assert digest == self.digest

    def root_dies(self) -> None:
        self.root.kill()
        self.root.wait()

    def close(self) -> None:
        self.root_dies()
        assert self.root.stdout is not None
        self.root.stdout.close()


@contextmanager
def family(tmp_path: Path, when: str = "now", session: str = "none") -> Iterator[Family]:
    made = Family(tmp_path / "heir.sock", when, session)
    heir = made.heir
    try:
        yield made
    finally:
        made.close()
        heir = made.heir or heir
        if heir and native.is_alive(heir):
            subprocess.run(["kill", "-9", str(heir)], check=False)


def purged(client: MedesClient, heir: int) -> None:
    client.purge("a")
    wait_until(lambda: not native.is_alive(heir), "the heir has ended")
    with pytest.raises(NotFoundError):
        client.get("a")


def forgotten_or(client: MedesClient, state: S) -> bool:
    """Whether it is in that state; fails when the agent has forgotten it."""
    return client.get("a").state is state


@pytest.mark.parametrize("agent_dies", ["never", "before the root", "after the root"])
@pytest.mark.parametrize("state", [S.WARM, S.DEDUP])
def test_an_heir_keeps_its_pages_and_is_purged(
    make_cluster: MakeCluster, tmp_path: Path, state: S, agent_dies: str
) -> None:
    agent: AgentProcess = make_cluster(nodes=1, controller=False, touches_per_s_max=0).agents[0]
    with family(tmp_path) as made:
        with agent.client() as client:
            client.register("family", pids=[made.root.pid], sandbox_id="a", purge_kills=True)
            if state is S.DEDUP:
                client.dedup("a")
        if agent_dies == "before the root":
            agent.kill()
        made.root_dies()
        if agent_dies == "after the root":
            agent.kill()
        if agent_dies != "never":
            agent.start()
        with agent.client() as client:
            assert client.get("a").state is state
            made.ask()
            wait_until(lambda: forgotten_or(client, S.WARM), "whole again")
            client.dedup("a")  # of the heir alone
            made.ask()
            wait_until(lambda: forgotten_or(client, S.WARM), "whole again")
            purged(client, made.heir)


@pytest.mark.parametrize("agent_dies", [False, True])
def test_purged_while_only_the_heir_is_out(
    make_cluster: MakeCluster, tmp_path: Path, agent_dies: bool
) -> None:
    agent: AgentProcess = make_cluster(nodes=1, controller=False).agents[0]
    with family(tmp_path) as made:
        with agent.client() as client:
            client.register("family", pids=[made.root.pid], sandbox_id="a", purge_kills=True)
            client.dedup("a")
        made.root_dies()
        if agent_dies:
            agent.kill()
            agent.start()
        with agent.client() as client:
            assert client.get("a").state is S.DEDUP
            purged(client, made.heir)
        assert agent.shm_files("sandbox-") == []


@pytest.mark.parametrize("agent_dies", [False, True])
@pytest.mark.parametrize("state", [S.WARM, S.DEDUP])
def test_a_root_that_leaves_its_session_to_a_child_and_ends(
    make_cluster: MakeCluster, tmp_path: Path, state: S, agent_dies: bool
) -> None:
    agent: AgentProcess = make_cluster(nodes=1, controller=False).agents[0]
    with family(tmp_path, "later", "leads") as made:
        with agent.client() as client:
            client.register("family", pids=[made.root.pid], sandbox_id="a", purge_kills=True)
            if state is S.DEDUP:
                client.dedup("a")
            made.root.send_signal(signal.SIGUSR1)
            made.root.wait()
        if agent_dies:  # in the middle of the child's restore
            agent.kill()
            agent.start()
        with agent.client() as client:
            wait_until(lambda: forgotten_or(client, S.WARM), "whole")
            made.ask()
            purged(client, made.heir)


def test_a_child_that_nobody_can_find_is_not_left_waiting_by_a_purge(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    agent: AgentProcess = make_cluster(nodes=1, controller=False).agents[0]
    agent.kill()
    agent.prefix = ["unshare", "--net"]  # where the kernel tells of no forks
    agent.start()
    with family(tmp_path, "later", "leaves") as made:
        with agent.client() as client:
            client.register("family", pids=[made.root.pid], sandbox_id="a", purge_kills=True)
            client.dedup("a")
            made.root.send_signal(signal.SIGUSR1)
            made.root.wait()
            client.purge("a")
        with contextlib.suppress(ConnectionError):  # it was found while it had a parent, and killed
            made.ask()


# When it is told, the root becomes a parent as daemon(3) does it, twice over, and ends.
DAEMON = """
import os, signal, sys, time
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
print("ready", flush=True)
signal.sigwait([signal.SIGUSR1])
for _ in range(2):
    if os.fork():
        os._exit(0)
    os.setsid()
if os.fork():
    os._exit(0)
print(os.getpid(), flush=True)
time.sleep(300)
"""


@pytest.fixture
def tells_of_forks() -> None:
    forks = Forks(start_time)
    forks.follow("a", [(os.getpid(), start_time(os.getpid()))])
    with subprocess.Popen(["sleep", "60"]) as child:
        found = child.pid in dict(forks.seen("a"))
        child.kill()
    forks.close()
    if not found:
        pytest.skip("the kernel does not tell of forks here")


@pytest.mark.usefixtures("tells_of_forks")
def test_a_daemon_of_an_instant_is_found_by_a_purge(make_cluster: MakeCluster, tmp_path: Path) -> None:
    """Away from parents and session before anybody looked."""
    agent: AgentProcess = make_cluster(nodes=1, controller=False).agents[0]
    with subprocess.Popen([sys.executable, "-c", DAEMON], stdout=subprocess.PIPE, text=True) as root:
        assert root.stdout is not None
        assert root.stdout.readline() == "ready\n"
        with agent.client() as client:
            client.register("daemon", pids=[root.pid], sandbox_id="a", purge_kills=True)
            root.send_signal(signal.SIGUSR1)
            daemon = int(root.stdout.readline())
            try:
                client.purge("a")
                wait_until(lambda: not native.is_alive(daemon), "the daemon has ended")
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(daemon, signal.SIGKILL)


@pytest.mark.usefixtures("tells_of_forks")
def test_what_a_root_forked_in_its_last_instant_is_looked_for_before_it_counts_as_gone() -> None:
    """Between a look and the question whether anything lives: the agent forgot such a sandbox (rehearsal of CI)."""
    subjects = ProcessSubjects()
    with subprocess.Popen([sys.executable, "-c", DAEMON], stdout=subprocess.PIPE, text=True) as root:
        assert root.stdout is not None
        assert root.stdout.readline() == "ready\n"
        subject = subjects.registered("a", Asked(pids=(root.pid,)))
        subjects.follow(subject)
        subjects.look([subject])
        root.send_signal(signal.SIGUSR1)
        daemon = int(root.stdout.readline())
        try:
            root.wait(30)
            assert not subject.gone()
            assert subject.living() == [daemon]
        finally:
            os.kill(daemon, signal.SIGKILL)
            wait_until(lambda: not native.is_alive(daemon), "it has ended")
        assert subject.gone()
    subjects.close()


def test_a_purge_leaves_another_sandbox_of_the_same_tree_alone(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    agent: AgentProcess = make_cluster(nodes=1, controller=False).agents[0]
    with family(tmp_path) as made, agent.client() as client:
        client.register("family", pids=[made.root.pid], sandbox_id="a", purge_kills=True)
        client.register("family", pids=[made.heir], sandbox_id="heir")
        client.purge("a")
        assert made.root.wait(30) < 0
        assert [s.sandbox_id for s in client.list()] == ["heir"]
        made.ask()


def test_a_sandbox_below_another_sleeps_by_itself(make_cluster: MakeCluster, tmp_path: Path) -> None:
    agent: AgentProcess = make_cluster(nodes=1, controller=False).agents[0]
    with family(tmp_path) as made, agent.client() as client:
        client.register("family", pids=[made.root.pid], sandbox_id="a")
        client.register("family", pids=[made.heir], sandbox_id="heir")
        client.dedup("a")
        assert client.get("heir").state is S.WARM
        client.dedup("heir")
        client.restore("a", eager=True)
        assert client.get("heir").state is S.DEDUP
        client.restore("heir", eager=True)
        made.ask()


def test_another_sandbox_of_the_same_tree_is_left_alone(make_cluster: MakeCluster, tmp_path: Path) -> None:
    agent: AgentProcess = make_cluster(nodes=1, controller=False).agents[0]
    with family(tmp_path) as made, agent.client() as client:
        client.register("family", pids=[made.root.pid], sandbox_id="a", purge_kills=True)
        client.register("family", pids=[made.heir], sandbox_id="heir")
        made.root_dies()
        wait_until(
            lambda: [s.sandbox_id for s in client.list()] == ["heir"], "the root's sandbox is forgotten"
        )
        made.ask()
