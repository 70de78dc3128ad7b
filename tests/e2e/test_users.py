"""Who may do what over the restore API's sockets: real processes of ordinary users."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from medes.rpc.gen import agent_pb2

from medes.agent.api.user_servicer import ALLOWED
from medes.agent.sandboxes import users
from medes.client import MedesClient
from medes.errors import MedesError, PermissionDeniedError
from medes.places import user_socket_beside
from tests.support.cluster import AgentProcess, wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users: needs root")

ALICE, BOB = 61_001, 61_002
PROLOGUE = """
import json, os, socket, sys, threading, time
from medes.client import MedesClient
from medes.errors import MedesError
from medes.places import user_socket_beside
from medes.rpc.gen import agent_pb2 as pb
os.setgroups({groups}); os.setgid({uid}); os.setuid({uid})
client = MedesClient({address!r})
def code(call, *args, **more):
    try:
        call(*args, **more)
        return "ok"
    except MedesError as error:
        return error.code
def show(value):
    print(json.dumps(value))
"""


def users_socket(agent: AgentProcess) -> Path:
    return Path(user_socket_beside(str(agent.socket)))


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="medes-users-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def agent(folder: Path) -> Iterator[AgentProcess]:
    process = AgentProcess(folder, "n0", "", user_sandboxes_max=3, user_calls_max=4)
    process.environment["MEDES_AGENT_USER_SOCKET"] = "true"
    process.start()
    yield process
    process.end(signal.SIGKILL)
    shutil.rmtree(process.shm)
    for path in (process.socket, users_socket(process)):
        path.unlink(missing_ok=True)


@pytest.fixture
def idle() -> Iterator[Any]:
    """Starts idle processes of a user."""
    started: list[subprocess.Popen[bytes]] = []

    def start(uid: int, setup: str = "") -> int:
        # The interpreter may be root's alone; a program that another user executes is open to tracing by them.
        become = f"import ctypes, os, signal, socket; os.setgroups([]); os.setgid({uid}); os.setuid({uid})"
        source = (
            f"{become}; ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)\n{setup}\nprint(1, flush=True)\nsignal.pause()"
        )
        process = subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline()
        started.append(process)
        return process.pid

    yield start
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def run_as(uid: int, agent: AgentProcess, script: str, groups: tuple[int, ...] = ()) -> Any:
    """What a script prints as JSON, run by a user with the address of the main socket."""
    source = PROLOGUE.format(uid=uid, address=agent.address, groups=list(groups)) + textwrap.dedent(script)
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_user_has_their_own_sandboxes_and_nobody_elses(agent: AgentProcess, idle: Any) -> None:
    of_root, of_alice, of_bob = idle(0), idle(ALICE), idle(BOB)
    with MedesClient(agent.address) as root:
        root.register("f", pids=[of_root], sandbox_id="roots", tenant="bank")
        seen = run_as(
            ALICE,
            agent,
            f"""
            made = client.register("f", pids=[{of_alice}], sandbox_id="mine")
            restored = None
            deduped = client.dedup("mine")
            begun = client.begin("mine"); client.end("mine")
            show(dict(
                id=made.sandbox_id, domain=made.domain, saved=deduped.sandbox.state.label,
                begun=begun.sandbox_id, listed=[s.sandbox_id for s in client.list()],
                explained=client.stub.Explain(pb.ExplainRequest(sandbox_id="mine")).sandbox.sandbox_id,
                others=[code(client.get, i) for i in ("roots", "uid-{BOB}.b", "../roots", "nobodys")],
                restore=code(client.restore, "roots"), purge=code(client.purge, "roots"),
                dedup=code(client.dedup, "roots"), begin=code(client.begin, "roots"),
                pids=[code(client.register, "f", pids=[p]) for p in (1, {of_root}, {of_bob}, os.getppid())],
                domain_of=code(client.register, "f", pids=[os.getpid()], domain="bank"),
                tenant=code(client.register, "f", pids=[os.getpid()], tenant="bank"),
                driver=code(client.register, "f", pids=[os.getpid()], driver="image"),
                base=code(client.dedup, "mine", make_base=True), node=code(client.node),
            ))
            """,
        )
        assert seen == {
            "id": "mine",
            "domain": f"uid-{ALICE}.n0",
            "saved": "dedup",
            "begun": "mine",
            "listed": ["mine"],
            "explained": "mine",
            "others": ["not_found"] * 4,
            **dict.fromkeys(("restore", "purge", "dedup", "begin"), "not_found"),
            "pids": ["permission_denied"] * 4,
            **dict.fromkeys(("domain_of", "tenant", "driver", "base", "node"), "permission_denied"),
        }
        assert {s.sandbox_id for s in root.list()} == {"roots", f"uid-{ALICE}.mine"}
        assert run_as(BOB, agent, "show([s.sandbox_id for s in client.list()])") == []
        assert root.get("roots").state.label == "warm"
        with pytest.raises(MedesError, match="are those of users"):
            root.register("f", pids=[of_bob], sandbox_id=f"uid-{BOB}.b")


def test_every_call_about_the_node_is_refused(agent: AgentProcess) -> None:
    """Also those that do not exist yet: what is not allowed by name is refused."""
    methods = agent_pb2.DESCRIPTOR.services_by_name["AgentService"].methods
    assert set(ALLOWED) < {m.name for m in methods}
    calls = {m.name: m.input_type.name for m in methods if m.name not in ALLOWED and not m.client_streaming}
    found = run_as(
        ALICE,
        agent,
        f"show({{m: code(getattr(client.stub, m), getattr(pb, r)()) for m, r in {calls!r}.items()}})",
    )
    assert found == dict.fromkeys(calls, "permission_denied")


def test_processes_that_are_only_half_the_users_are_refused(agent: AgentProcess, idle: Any) -> None:
    saved = idle(0, f"os.setresuid({ALICE}, {ALICE}, 0); ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)")
    closed = idle(ALICE, "ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)")
    script = f"show([code(client.register, 'f', pids=[p]) for p in ({saved}, {closed})])"
    assert run_as(ALICE, agent, script) == ["permission_denied"] * 2


def test_a_process_that_is_another_users_by_now_is_neither_read_nor_killed(
    agent: AgentProcess, idle: Any, folder: Path
) -> None:
    """Registered by its user, then a set-uid program is executed in it."""
    program = folder / "as-bob"
    shutil.copy("/usr/bin/sleep", program)
    os.chown(program, BOB, BOB)
    program.chmod(0o4755)
    pid = idle(
        ALICE,
        f"signal.signal(signal.SIGUSR1, lambda *_: os.execv('{program}', ['sleep', '1000']))",
    )
    script = f"show(code(client.register, 'f', pids=[{pid}], sandbox_id='c', purge_kills=True))"
    assert run_as(ALICE, agent, script) == "ok"
    os.kill(pid, signal.SIGUSR1)
    wait_until(lambda: Path(f"/proc/{pid}/comm").read_text() == "as-bob\n", "the other program")
    found = run_as(ALICE, agent, "show([code(client.dedup, 'c'), code(client.purge, 'c')])")
    assert found == ["permission_denied", "ok"]
    assert Path(f"/proc/{pid}/comm").read_text() == "as-bob\n"


def test_function_code_cannot_register_what_its_runtime_has(agent: AgentProcess, idle: Any) -> None:
    parent = idle(ALICE, "if os.fork() == 0: ctypes.CDLL(None).prctl(1, 9, 0, 0, 0); signal.pause()")
    child = int(Path(f"/proc/{parent}/task/{parent}/children").read_text().split()[0])
    with MedesClient(agent.address) as root:
        root.register("f", pids=[parent], sandbox_id="runtimes", tenant="bank")
        script = f"show([code(client.register, 'f', pids=[p]) for p in ({parent}, {child})])"
        assert run_as(ALICE, agent, script) == ["already_exists"] * 2


def test_bounds_of_a_user(agent: AgentProcess, idle: Any) -> None:
    pids = [idle(ALICE) for _ in range(4)]
    found = run_as(ALICE, agent, f"show([code(client.register, 'f', pids=[p]) for p in {pids}])")
    assert found == ["ok"] * 3 + ["limit_exceeded"]
    watched = run_as(
        ALICE,
        agent,
        """
        import threading, time
        from medes.limits import USER_WATCHES_MAX
        streams = [client.stub.Watch(pb.WatchRequest()) for _ in range(USER_WATCHES_MAX + 1)]
        ended = []
        def follow(stream):
            try:
                for _ in stream: pass
            except MedesError as error:
                ended.append(error.code)
        for s in streams: threading.Thread(target=follow, args=(s,), daemon=True).start()
        deadline = time.monotonic() + 20
        while not ended and time.monotonic() < deadline: time.sleep(0.05)
        show(ended); sys.stdout.flush(); os._exit(0)
        """,
    )
    assert watched == ["busy"]
    # Another user's share is their own.
    assert run_as(BOB, agent, f"show(code(client.register, 'f', pids=[{idle(BOB)}]))") == "ok"


def test_a_hook_is_a_socket_of_the_user(agent: AgentProcess, idle: Any, folder: Path) -> None:
    pid = idle(ALICE)
    (folder / "hers").mkdir()
    os.chown(folder / "hers", ALICE, ALICE)
    script = """
    import socket
    own = socket.socket(socket.AF_UNIX); own.bind({own!r}); own.listen()
    show([code(client.register, "f", pids=[{pid}], hook_address=a) for a in ({main!r}, {own!r} + "x", {own!r})])
    """
    main = agent.address.removeprefix("unix:")
    found = run_as(ALICE, agent, script.format(own=str(folder / "hers" / "hook"), pid=pid, main=main))
    assert found == ["permission_denied", "permission_denied", "ok"]


def test_root_has_its_own_socket_and_a_group_may_be_let_in(folder: Path, idle: Any) -> None:
    agent = AgentProcess(folder, "n0", "", listen_group="daemon")
    agent.environment["MEDES_AGENT_USER_SOCKET"] = "true"
    agent.start()
    try:
        with (
            MedesClient(f"unix:{users_socket(agent)}") as client,
            pytest.raises(PermissionDeniedError, match="for other users"),
        ):
            client.list()
        with MedesClient(agent.address) as root:
            root.register("f", pids=[idle(0)], sandbox_id="roots")
        script = "show([s.sandbox_id for s in client.list()])"
        assert run_as(ALICE, agent, script) == []
        assert run_as(ALICE, agent, script, groups=(1,)) == ["roots"]  # daemon's
    finally:
        agent.end()
        shutil.rmtree(agent.shm, ignore_errors=True)
    assert not agent.socket.exists() and not users_socket(agent).exists()


def test_ownership_outlives_the_agent(agent: AgentProcess, idle: Any) -> None:
    pid = idle(ALICE)
    run_as(ALICE, agent, f"client.register('f', pids=[{pid}], sandbox_id='m'); client.dedup('m'); show(1)")
    agent.kill()
    agent.start()
    script = "show([[s.sandbox_id, s.state.label] for s in client.list()])"
    assert run_as(BOB, agent, script) == []
    assert run_as(ALICE, agent, script) == [["m", "dedup"]]
    assert run_as(ALICE, agent, "show(code(client.restore, 'm'))") == "ok"


def test_owners_are_read_from_ids_and_from_nothing_else() -> None:
    assert users.owner_of("uid-1000.a") == 1000 and users.owner_of("uid-0.a") == 0
    for text in (
        "uid-1000",
        "uid-.a",
        "uid-01.a",
        "a.uid-1000.b",
        "UID-1000.a",
        "uid--1.a",
        "uid-99999999999.a",
    ):
        assert users.owner_of(text) is None, text
