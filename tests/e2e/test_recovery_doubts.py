"""Recovery destroys nothing it does not understand: whatever the journal, the settings, the rights or the descriptors of
the day, a dedup'd sandbox is taken back, or waits with its cause, and can be restored when that is mended."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from medes.agent.journal.journal import decode_line, encode_line
from medes.client import MedesClient
from medes.errors import LostError, MedesError, UnsupportedError, WrongStateError
from medes.types import LifecycleSettings
from medes.types import SandboxState as S
from tests.support.cluster import AgentProcess, Cluster, wait_until
from tests.support.counter_app import App

pytestmark = [pytest.mark.live, pytest.mark.slow]

MakeCluster = Callable[..., Cluster]
MakeApp = Callable[..., App]
OFF = LifecycleSettings(disabled=True)
WITHOUT_PTRACE = ["setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace"]


def dedupd(agent: AgentProcess, apps: dict[str, App]) -> None:
    """Registers and dedups; "w…" only registers."""
    with agent.client() as client:
        for name, app in apps.items():
            client.register("counter", pids=[app.pid], sandbox_id=name, lifecycle=OFF)
            if not name.startswith("w"):
                client.dedup(name)


def all_answer(agent: AgentProcess, apps: dict[str, App]) -> None:
    with agent.client() as client:
        for name, app in apps.items():
            client.restore(name, eager=True)
            app.ask()
        assert {s.sandbox_id: s.state for s in client.list()} == dict.fromkeys(apps, S.WARM)


def states(client: MedesClient) -> dict[str, tuple[S, str]]:
    """Of each sandbox: its state, and the code of what it waits for."""
    return {s.sandbox_id: (s.state, s.waiting.partition(":")[0]) for s in client.list()}


@pytest.fixture
def alone(make_cluster: MakeCluster) -> AgentProcess:
    return make_cluster(nodes=1, controller=False).agents[0]


def test_every_single_line_of_a_journal_may_be_damaged(alone: AgentProcess, make_app: MakeApp) -> None:
    apps = {name: make_app(megabytes=1, seed=n) for n, name in enumerate(("a", "b", "w"))}
    dedupd(alone, apps)
    with alone.client() as client:  # so that records of a whole restore are among them
        client.restore("b", eager=True)
        client.dedup("b")
    alone.kill()
    path = alone.state_dir / "journal"
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) > 10
    for n, line in enumerate(lines):
        path.write_bytes(b"".join([*lines[:n], line[:30] + b"?" + line[31:], *lines[n + 1 :]]))
        alone.start()
        record = decode_line(line.rstrip(b"\n"))
        with alone.client() as client:
            found = states(client)
            assert {i: found[i] for i in ("a", "b")} == dict.fromkeys(("a", "b"), (S.DEDUP, "")), record
            assert [b.pins >= 2 for b in client.node().bases] == [True], record
            # Nothing but its line says that a warm sandbox is there; it needs nothing of us.
            assert record is not None
            assert "w" in found or record.get("spec", {}).get("sandbox_id") == "w"
            assert client.orphans() == []
        alone.kill()
    path.write_bytes(b"".join(lines))
    alone.start()
    all_answer(alone, apps)


@pytest.mark.parametrize("loss", ["emptied", "noise", "newer"])
def test_without_its_journal_the_files_are_enough(alone: AgentProcess, make_app: MakeApp, loss: str) -> None:
    apps = {"a": make_app(megabytes=1, seed=1), "b": make_app(megabytes=1, seed=2)}
    dedupd(alone, apps)
    with alone.client() as client:
        told = client.list()
    alone.kill()
    path = alone.state_dir / "journal"
    if loss == "emptied":
        shutil.rmtree(alone.state_dir)
    elif loss == "noise":
        path.write_bytes(bytes(range(256)) * 64)
    else:
        newer = encode_line({"t": "format", "version": 9, "readable_from": 9})
        path.write_bytes(newer + encode_line({"t": "sandbox", "new": "shape"}))
    alone.start()
    with alone.client() as client:
        assert states(client) == dict.fromkeys(apps, (S.DEDUP, ""))
        (base,) = client.node().bases
        assert base.base.function == "counter"
        for sandbox, before in zip(client.list(), told, strict=True):
            # What is pinned for whom nobody remembers is nobody's share; pages that stayed may differ by a few.
            assert sandbox.base_share_bytes == before.base_share_bytes
            assert abs(sandbox.warm_bytes - before.warm_bytes) < 1 << 20
    if loss == "newer":
        (aside,) = alone.state_dir.glob("journal.newer-*")
        assert aside.read_bytes().startswith(newer), "left for the agent that wrote it"
    all_answer(alone, apps)
    assert alone.shm_files("base-") != [], "others may have pinned it: nobody remembers"


def patch_version(path: Path, version: int) -> None:
    """Both formats have it at offset 8."""
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(8)
        file.write(version.to_bytes(4, "little"))


def test_a_file_of_a_newer_agent_is_left_as_it_is(alone: AgentProcess, make_app: MakeApp) -> None:
    apps = {"a": make_app(megabytes=1)}
    dedupd(alone, apps)
    alone.kill()
    (file,) = alone.shm.glob("sandbox-*")
    version = int.from_bytes(file.read_bytes()[8:12], "little")
    for with_journal in (True, False):
        patch_version(file, 99)
        before = file.read_bytes()
        if not with_journal:
            shutil.rmtree(alone.state_dir)
        alone.start()
        with alone.client() as client:
            if with_journal:
                assert states(client) == {"a": (S.DEDUP, "unsupported")}
                with pytest.raises(UnsupportedError, match="version 99"):
                    client.restore("a")
            else:
                (orphan,) = client.orphans()
                assert (orphan.name, orphan.code) == (file.name, "unsupported")
        assert alone.end() == 0
        assert file.read_bytes() == before
        patch_version(file, version)
    alone.start()
    all_answer(alone, apps)


def test_an_agent_without_rights_keeps_what_it_cannot_take_back(
    alone: AgentProcess, make_app: MakeApp
) -> None:
    apps = {"a": make_app(megabytes=1)}
    dedupd(alone, apps)
    assert alone.end() == 0
    alone.prefix = WITHOUT_PTRACE
    alone.start()
    with alone.client() as client:
        assert states(client) == {"a": (S.DEDUP, "unsupported")}
        with pytest.raises(UnsupportedError, match="cannot run here"):
            client.restore("a")
        with pytest.raises(UnsupportedError, match="cannot run here"):
            client.purge("a")  # it would have to give the pages back
        assert states(client) == {"a": (S.DEDUP, "unsupported")}
        told = client.explain("a")
        assert "cannot run here" in told.sandbox.waiting and told.next_action == "none"
        assert {op.outcome for op in told.ops if op.kind == "restore"} == {"unsupported"}
        # What keeps it from coming back keeps its base as well, and it answers for that.
        (base,) = client.bases()
        assert told.sandbox.base_share_bytes == base.bytes > 0 and base.sandboxes == 1
        with pytest.raises(WrongStateError, match="pinned by"):
            client.remove_base(base.base.base_id, force=True)
    assert alone.end() == 0
    alone.prefix = []
    alone.start()
    all_answer(alone, apps)


def test_without_descriptors_it_waits_and_is_taken_back_when_there_are_some(
    alone: AgentProcess, make_app: MakeApp
) -> None:
    apps = {f"s{n}": make_app(megabytes=1, seed=n) for n in range(8)}
    dedupd(alone, apps)
    assert alone.process is not None
    used = len(list(Path(f"/proc/{alone.process.pid}/fd").iterdir()))
    waiting: set[str] = set()
    for limit in range(used - 16, used + 16):  # until it is enough for some and not for all
        alone.kill()
        alone.prefix = ["prlimit", f"--nofile={limit}:{limit}"]
        try:
            alone.start()
        except AssertionError as error:  # not enough for the agent itself, which then does not begin
            assert "Too many open files" in str(error)
            continue
        with alone.client() as client:
            found = states(client)
        assert set(found) == set(apps)
        assert {state for state, _ in found.values()} == {S.DEDUP}
        waiting = {name for name, (_, code) in found.items() if code}
        if len(waiting) <= len(apps) - 3:
            break
    assert waiting, "no limit let some wait"
    with alone.client() as client:
        for name in set(apps) - waiting:  # their descriptors become free
            apps.pop(name).close()
        wait_until(
            lambda: len([w for _, w in states(client).values() if w]) < len(waiting), "taken back", 60.0
        )
    alone.kill()
    alone.prefix = []
    alone.start()
    all_answer(alone, apps)


@pytest.mark.parametrize("what", ["sandbox-", "base-"])
def test_what_was_lost_for_want_of_a_file_is_back_with_it(
    alone: AgentProcess, make_app: MakeApp, tmp_path: Path, what: str
) -> None:
    apps = {"a": make_app(megabytes=1)}
    dedupd(alone, apps)
    alone.kill()
    (file,) = alone.shm.glob(f"{what}*")
    elsewhere = alone.shm.parent / f"{alone.shm.name}.elsewhere"  # of the same file system: the inode stays
    file.rename(elsewhere)
    try:
        alone.start()
        with alone.client() as client:
            assert states(client)["a"][0] is S.LOST
            with pytest.raises(LostError):
                client.restore("a")
            elsewhere.rename(file)
            wait_until(lambda: states(client)["a"] == (S.DEDUP, ""), "found again", 60.0)
        all_answer(alone, apps)
    finally:
        elsewhere.unlink(missing_ok=True)


@pytest.mark.parametrize("journal", [True, False])
def test_files_are_known_by_what_they_say(alone: AgentProcess, make_app: MakeApp, journal: bool) -> None:
    """Not by their names: renamed ones are found, and a copy never takes the place of the one that is kept up to date."""
    apps = {name: make_app(megabytes=1, seed=n) for n, name in enumerate(("a", "b"))}
    dedupd(alone, apps)
    (base,) = alone.shm.glob("base-*")
    shutil.copy(base, alone.shm / "base-0-copy.slab")
    shutil.copy(alone.shm / "sandbox-a.medes", alone.shm / "sandbox-0-copy.medes")
    with alone.client() as client:
        client.restore("a", eager=True)
        client.dedup("a")
    alone.kill()
    (alone.shm / "sandbox-b.medes").rename(alone.shm / "sandbox-renamed.medes")
    if not journal:
        (alone.state_dir / "journal").unlink()
    alone.start()
    with alone.client() as client:
        assert states(client) == {"a": (S.DEDUP, ""), "b": (S.DEDUP, "")}
        assert {o.name for o in client.orphans()} == {"base-0-copy.slab", "sandbox-0-copy.medes"}
    for name in ("base-0-copy.slab", "sandbox-0-copy.medes"):
        (alone.shm / name).unlink()
    all_answer(alone, apps)


def test_a_renamed_node_keeps_the_bases_that_its_sandboxes_need(
    alone: AgentProcess, make_app: MakeApp
) -> None:
    """Of another function than the base's too: nothing but its pins says that it needs them."""
    apps = {"maker": make_app(megabytes=1), "user": make_app(megabytes=1)}
    with alone.client() as client:
        for name, app in apps.items():
            client.register(f"function-{name}", pids=[app.pid], sandbox_id=name, lifecycle=OFF)
            client.dedup(name)
        assert client.bases("function-maker")[0].pins_by_node == {"n0": 2}
    alone.end()
    alone.set(node_id="another", base_keep_period_s=1)
    alone.start()
    with alone.client() as client:
        (base,) = client.bases("function-maker")
        assert (base.pins_by_node, base.sandboxes) == ({"another": 2}, 2)
        client.purge("maker")
        with pytest.raises(WrongStateError, match="pinned by"):
            client.remove_base(base.base.base_id, force=True)
        client.restore("user", eager=True)
    apps["user"].ask()


def test_a_second_agent_with_the_same_shm_dir_is_refused_by_name(
    alone: AgentProcess, make_app: MakeApp, make_cluster: MakeCluster, tmp_path: Path
) -> None:
    apps = {"a": make_app(megabytes=1)}
    dedupd(alone, apps)
    files = alone.shm_files()
    second = AgentProcess(tmp_path, "second", "", shm_dir=alone.shm)
    with pytest.raises(AssertionError, match=r"already_exists.*node n0.*shm_dir"):
        second.start()
    second.socket.unlink(missing_ok=True)
    assert alone.shm_files() == files
    alone.kill()
    alone.start()
    all_answer(alone, apps)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_of_state_dir_heals(tmp_path: Path, small_disk: Path, make_app: MakeApp) -> None:
    apps = {"a": make_app(megabytes=1, seed=1), "b": make_app(megabytes=1, seed=2)}
    agent = AgentProcess(tmp_path, "n0", "", state_dir=small_disk / "state")
    try:
        agent.start()
        dedupd(agent, apps)
        filler = small_disk / "filler"
        with pytest.raises(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 1024)
        with agent.client() as client:
            for name in apps:
                client.restore(name, eager=True)
                assert client.get(name).state is S.WARM
                apps[name].ask()
            with pytest.raises(MedesError, match="state_dir") as caught:
                while True:  # what is left of the last block of the journal may take a record or two
                    client.dedup("a")
                    client.restore("a", eager=True)
            assert caught.value.code == "io"
            assert client.get("a").state is S.WARM
            client.purge("b")
            filler.unlink()
            client.dedup("a")
        agent.kill()
        agent.start()
        with agent.client() as client:
            assert states(client) == {"a": (S.DEDUP, "")}
        del apps["b"]
        all_answer(agent, apps)
        assert agent.end() == 0
    finally:
        agent.clean()
