"""What an agent restores from is what agents of this node wrote: files of shm_dir that anybody else has changed, with
every checksum right, are corrupt before they are used, and the keys that say so survive the loss of either folder."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from medes import native
from medes.agent.store.store_key import KEY_NAME
from medes.errors import MedesError
from tests.support.cluster import AgentProcess
from tests.support.counter_app import App
from tests.support.older_files import without_tags

pytestmark = pytest.mark.live

SEAL = slice(4056, 4088)
SANDBOX_META_BYTES, SANDBOX_META_SUM, SANDBOX_HEADER_SUM = 40, 88, 104
SLAB_HEADER_SUM = 4088


def put(data: bytearray, offset: int, value: int) -> None:
    data[offset : offset + 8] = value.to_bytes(8, "little")


def number(data: bytearray, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 8], "little")


def rewrite(path: Path, data: bytearray) -> None:
    path.chmod(0o600)
    path.write_bytes(data)


def change_meta(path: Path) -> None:
    """As somebody who knows the format and has no key: all checksums fit."""
    data = bytearray(path.read_bytes())
    meta = slice(4096, 4096 + number(data, SANDBOX_META_BYTES))
    data[meta] = data[meta].replace(b'"function"', b'"functioN"')
    put(data, SANDBOX_META_SUM, native.checksum64(bytes(data[meta])))
    put(data, SANDBOX_HEADER_SUM, native.checksum64(bytes(data[:SANDBOX_HEADER_SUM])))
    rewrite(path, data)


def strip_seal(path: Path) -> None:
    """What an agent before there were seals has left."""
    data = bytearray(path.read_bytes())
    data[SEAL] = bytes(32)
    if path.suffix == ".slab":
        put(data, SLAB_HEADER_SUM, native.checksum64(bytes(data[:SLAB_HEADER_SUM])))
    rewrite(path, data)


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[AgentProcess]:
    process = AgentProcess(tmp_path, "n0", "")
    process.start()
    yield process
    process.clean()


def dedup(agent: AgentProcess, app: App, name: str) -> None:
    with agent.client() as client:
        client.register("counter", pids=[app.pid], sandbox_id=name)
        client.dedup(name)


def restart(agent: AgentProcess) -> None:
    agent.start()


def code_of_restore(agent: AgentProcess, name: str) -> str:
    with agent.client() as client:
        try:
            client.restore(name, eager=True)
        except MedesError as error:
            return error.code
        return "ok"


def sandbox_file(agent: AgentProcess, name: str) -> Path:
    return agent.shm / f"sandbox-{name}.medes"


@pytest.mark.parametrize("how", [change_meta, strip_seal, without_tags])
def test_a_changed_file_is_never_restored_from(agent: AgentProcess, how: object) -> None:
    with App(seed=1) as changed, App(seed=2) as other:
        dedup(agent, changed, "changed")
        dedup(agent, other, "other")
        agent.end(signal.SIGKILL)
        assert callable(how)
        how(sandbox_file(agent, "changed"))
        with pytest.raises(MedesError, match="seal"):
            native.set_store_key(str(agent.shm), (agent.shm / KEY_NAME).read_bytes()[:32])
            native.SandboxFile.open(str(sandbox_file(agent, "changed")))
        restart(agent)
        assert code_of_restore(agent, "changed") != "ok"
        assert code_of_restore(agent, "other") == "ok"
        other.ask()
        assert sandbox_file(agent, "changed").exists() or list(agent.shm.glob("*changed*"))


@pytest.mark.parametrize("lost", ["state_dir", "shm_dir"])
def test_one_of_the_two_keys_may_be_lost(agent: AgentProcess, lost: str) -> None:
    with App(seed=3) as app:
        dedup(agent, app, "a")
        agent.end(signal.SIGKILL)
        if lost == "state_dir":
            shutil.rmtree(agent.state_dir)
        else:
            (agent.shm / KEY_NAME).unlink()
        restart(agent)
        assert (agent.shm / KEY_NAME).read_bytes() == (agent.state_dir / KEY_NAME).read_bytes()
        assert (agent.shm / KEY_NAME).stat().st_mode & 0o777 == 0o600
        assert code_of_restore(agent, "a") == "ok"
        app.ask()


def test_files_of_agents_without_a_key_are_taken_once(agent: AgentProcess) -> None:
    with App(seed=4) as app:
        dedup(agent, app, "a")
        agent.end(signal.SIGKILL)
        without_tags(sandbox_file(agent, "a"))
        for folder in (agent.shm, agent.state_dir):
            (folder / KEY_NAME).unlink()
        files = [p for p in agent.shm.iterdir() if p.suffix in (".slab", ".medes")]
        assert len(files) == 2
        for path in files:
            strip_seal(path)
        restart(agent)
        agent.end(signal.SIGKILL)
        assert all(any(path.read_bytes()[SEAL]) for path in files)
        restart(agent)
        assert code_of_restore(agent, "a") == "ok"
        app.ask()
