"""A start that is refused leaves the machine as it was, and what was there before stays."""

from __future__ import annotations

import dataclasses
import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from medes.agent.daemon import AgentDaemon
from medes.agent.recovery.recovery import Recovered
from medes.config import AgentSettings
from medes.errors import MedesError
from tests.unit.agent.conftest import MakeAgent

NOBODY = 65534


def settings_in(folder: Path, **more: object) -> AgentSettings:
    """Everything lies in folders that do not exist yet."""
    made = AgentSettings(
        node_id="refused",
        controllers=(),
        listen=f"unix:{folder}/run/agent.sock",
        peer_address="127.0.0.1:0",
        state_dir=str(folder / "deep" / "state"),
        shm_dir=str(folder / "deep" / "shm"),
    )
    return dataclasses.replace(made, **more)  # type: ignore[arg-type]


async def refused(settings: AgentSettings) -> MedesError:
    daemon = AgentDaemon(settings)
    with pytest.raises(MedesError) as caught:
        await daemon.start()
    await daemon.stop()
    return caught.value


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short, for the socket's path."""
    with tempfile.TemporaryDirectory(prefix="medes-refused-") as name:
        yield Path(name)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Root's, where everybody may look: pytest's own folders are closed to others."""
    with tempfile.TemporaryDirectory(prefix="medes-refused-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


async def test_a_bad_page_host(folder: Path) -> None:
    await refused(settings_in(folder, page_host="192.0.2.1"))
    assert list(folder.iterdir()) == []


async def test_a_taken_port(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        await refused(settings_in(folder, peer_address=f"127.0.0.1:{port}"))
        assert list(folder.iterdir()) == []
        await refused(settings_in(folder, metrics_address=f"127.0.0.1:{port}"))
        assert list(folder.iterdir()) == []


async def test_what_was_there_stays(folder: Path) -> None:
    """Folders of the user's, and the journal of an agent before: only the lock is new."""
    settings = settings_in(folder, page_host="192.0.2.1")
    state = Path(settings.state_dir)
    state.mkdir(parents=True)
    (state / "journal").write_bytes(b"")
    await refused(settings)
    assert sorted(str(p.relative_to(folder)) for p in folder.rglob("*")) == [
        "deep",
        "deep/state",
        "deep/state/journal",
    ]


async def test_a_running_agent_with_the_same_folders_loses_nothing(make_agent: MakeAgent) -> None:
    running = (await make_agent()).settings
    error = await refused(dataclasses.replace(running, listen=running.listen + "2"))
    assert error.code == "already_exists"
    assert sorted(p.name for p in Path(running.state_dir).iterdir()) == [
        "journal",
        "journal.lock",
        "store.key",
    ]
    assert running.shm_path.is_dir()


async def test_a_start_is_told_in_words(make_agent: MakeAgent, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    await make_agent()
    told = [record.getMessage() for record in caplog.records if record.name.startswith("medes.agent")]
    assert "recovered: nothing" in told
    assert any(
        re.fullmatch(r"agent n0 serves unix:\S+, peers at \S+, base pages at \S+ over [\w ]+", t)
        for t in told
    ), told
    assert Recovered(bases=2, rolled_back=1, notes=["a note"]).text() == "2 bases, 1 rolled back; a note"


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user: needs root")
@pytest.mark.parametrize("exists", [False, True])
def test_an_ordinary_user_is_told_which_options_help(open_folder: Path, exists: bool) -> None:
    """Whether root's folder is there already or cannot be made."""
    state = open_folder / "state"
    if exists:
        state.mkdir(mode=0o700)
    script = (
        "import os, importlib.metadata, medes.agent.daemon, medes.cli.agent\n"  # before: the interpreter may be root's alone
        "from medes.cli.main import main\n"
        f"os.setgid({NOBODY}); os.setuid({NOBODY})\n"
        f"main(['agent', '--state-dir', {str(state)!r}, '--shm-dir', {str(open_folder / 'shm')!r},"
        f" '--listen', 'unix:{open_folder}/a.sock'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 5, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"medes: permission_denied: {state}: ")
    assert all(option in last for option in ("--state-dir", "--shm-dir", "--listen"))
    assert state.exists() == exists
