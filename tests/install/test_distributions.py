"""The two wheels: who owns which file, what an index shows of them, and a client without the native core."""

from __future__ import annotations

import email
import re
import subprocess
import tomllib
import zipfile
from collections.abc import Callable
from email.message import Message
from pathlib import Path

import pytest

from medes import __version__
from medes.types import SandboxState
from tests.support.cluster import AgentProcess
from tests.support.counter_app import App

ROOT = Path(__file__).resolve().parents[2]
SOURCES = {".py", ".pyi", ".toml", ".typed"}
CALLER = """
import asyncio, importlib.util, sys
from medes.client import AsyncMedesClient, MedesClient
from medes.errors import NotFoundError
from medes.types import LifecycleSettings

assert "site-packages" in sys.modules["medes"].__file__
assert importlib.util.find_spec("medes.native") is None
address, pid = sys.argv[1], int(sys.argv[2])

async def restore(sandbox_id):
    async with AsyncMedesClient(address) as medes:
        print((await medes.restore(sandbox_id, eager=True)).report.was_dedup)
        print((await medes.get(sandbox_id)).state.label)

with MedesClient(address) as medes:
    sandbox = medes.register("client", pids=[pid], lifecycle=LifecycleSettings(disabled=True))
    medes.begin(sandbox.sandbox_id)
    medes.end(sandbox.sandbox_id)
    print(medes.dedup(sandbox.sandbox_id).report.gross_saved_bytes > 0)
    asyncio.run(restore(sandbox.sandbox_id))
    medes.purge(sandbox.sandbox_id)
    try:
        medes.get(sandbox.sandbox_id)
    except NotFoundError as error:
        print(error.code)
"""


def files(wheel: Path) -> set[str]:
    return {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}


def metadata(wheel: Path) -> Message:
    archive = zipfile.ZipFile(wheel)
    (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
    return email.message_from_bytes(archive.read(name))


def test_each_file_has_one_owner_and_none_is_missing(wheels: tuple[Path, Path]) -> None:
    client, medes = map(files, wheels)
    assert client & medes == set()
    sources = subprocess.check_output(
        ["git", "ls-files", "-co", "--exclude-standard", "medes"], cwd=ROOT, text=True
    )
    written = {name for name in sources.split() if Path(name).suffix in SOURCES and (ROOT / name).exists()}
    made = (client | medes) - written
    assert written <= client | medes
    assert {name for name in made if not name.startswith("medes/rpc/gen/")} == {
        name for name in medes if name.startswith("medes/native/_core.") and name.endswith(".so")
    }
    assert {
        f"medes/rpc/gen/{part}_pb2{kind}" for part in ("agent", "common") for kind in (".py", ".pyi")
    } <= client


def test_what_an_index_shows(wheels: tuple[Path, Path]) -> None:
    for wheel in wheels:
        shown = metadata(wheel)
        assert shown["Version"] == __version__
        assert (shown["License-Expression"], shown["License-File"]) == ("Apache-2.0", "LICENSE")
        assert "Operating System :: POSIX :: Linux" in shown.get_all("Classifier", [])
        text = shown.get_payload()
        assert isinstance(text, str) and text.startswith("# ") and "medes-client" in text
        targets = re.findall(r"\]\(([^)]*)\)", text)
        assert [t for t in targets if not t.startswith("https://")] == []
    assert wheels[0].name.endswith("-py3-none-any.whl")
    assert f"medes-client=={__version__}" in metadata(wheels[1]).get_all("Requires-Dist", [])


def test_one_version_everywhere() -> None:
    for file in ("pyproject.toml", "deploy/client/pyproject.toml"):
        assert tomllib.loads((ROOT / file).read_text())["project"]["version"] == __version__
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None and newest[1] in (__version__, "Unreleased")


@pytest.mark.live
def test_the_client_alone_calls_an_agent(
    wheels: tuple[Path, Path], make_venv: Callable[..., Path], tmp_path: Path
) -> None:
    python = make_venv(str(wheels[0]))
    (tmp_path / "caller.py").write_text(CALLER)
    agent = AgentProcess(tmp_path, "n0", "")
    with App() as app:
        try:
            agent.start()
            done = subprocess.run(
                [python, tmp_path / "caller.py", agent.address, str(app.pid)],
                capture_output=True,
                text=True,
                timeout=120,
            )
        finally:
            agent.clean()
        assert (done.stdout.split(), done.stderr) == (
            ["True", "True", SandboxState.WARM.label, "not_found"],
            "",
        )
        app.ask()


def test_the_clients_sources_build_alone(wheels: tuple[Path, Path], tmp_path: Path) -> None:
    """An archive of sources has all that its wheel needs, outside of the repository."""
    tools = ROOT / "build" / "wheel-tools" / "bin" / "python"
    build = "import os, sys; os.chdir(sys.argv[1]); from hatchling.build import build_sdist; build_sdist(sys.argv[2])"
    venv = subprocess.run([tools, "-c", "import hatchling"], capture_output=True)
    python = tools if venv.returncode == 0 else ROOT / ".venv" / "bin" / "python"
    subprocess.run([python, "-c", build, ROOT / "deploy" / "client", tmp_path], check=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    done = subprocess.run(
        [tools, "-m", "pip", "wheel", "-q", "--no-deps", "--wheel-dir", tmp_path, archive],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert files(wheel) == files(wheels[0])
