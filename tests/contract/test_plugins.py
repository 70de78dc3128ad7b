"""Parts of somebody else's distribution are used by name: no file of the project knows of them."""

from __future__ import annotations

import importlib
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from medes import plugins
from medes.cli.main import cli
from medes.errors import AlreadyExistsError, UnsupportedError
from medes.eval import report
from medes.eval.case import key
from medes.plugins import Kind
from medes.types import SandboxState as S
from tests.support import folder_transport, lines_contract, vault_driver
from tests.support.cluster import AgentProcess, Cluster, wait_until
from tests.support.controller_process import ControllerProcess
from tests.support.counter_app import App
from tests.support.distribution import install

PARTS = """
import dataclasses
import sys

from medes.controller.registry.store import MemoryStore
from medes.drivers.image import ImageDriver
from medes.eval.case import Figure
from medes.policy.keep_alive import Action
from medes.policy.policy import Outlook, Step

class Mine(ImageDriver):
    name = "mine"

class Absent:
    @staticmethod
    def missing():
        return {"a hypervisor": "modprobe one"}

class Restless:
    @classmethod
    def make(cls, settings):
        return cls()

    def observe(self, event):
        print("observed", event.what.value, event.state.label, file=sys.stderr, flush=True)

    def decide(self, node):
        warm = [v for v in node.sandboxes if v.state.label == "warm"]
        return [Step(v.sandbox_id, Action.DEDUP, "restless") for v in warm]

    def outlook(self, view):
        return Outlook(Action.DEDUP, 0.0, "restless")

class Tiny(MemoryStore):
    @classmethod
    def open(cls, url):
        print("opened", url, file=sys.stderr, flush=True)
        return cls()

@dataclasses.dataclass(frozen=True)
class Rolls:
    rolls: int = 600

    @classmethod
    def quick(cls):
        return cls(6)

class Dice:
    name = "dice"
    summary = "what a die shows"
    options = Rolls

    def missing(self):
        return {}

    def run(self, context):
        context.progress("rolled")
        yield Figure("eyes_count", context.options.rolls + context.repetition, {"die": "red"})
"""

GREETER = """
import random
weight = [random.Random(n).randbytes(4000) for n in range(500)]
again = []
hooks = {"after_restore": [lambda: again.append(" again")]}

def greet(event):
    return f"hello {event['who']}" + "".join(again)
"""


@pytest.fixture
def distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as pip would fill it, on the path of every Python started from here."""
    points = (
        "[medes.drivers]\nmine = throw_away:Mine\nabsent = throw_away:Absent\nvault = vault:VaultDriver\n"
        "[medes.policies]\nrestless = throw_away:Restless\n"
        "[medes.transports]\nfolder = throw_away_transport:FolderTransport\n"
        "[medes.registry_stores]\ntiny = throw_away:Tiny\n"
        "[medes.function_contracts]\nlines = lines_contract:LinesContract\n"
        "[medes.evaluation_cases]\ndice = throw_away:Dice\n"
    )
    modules = {
        "throw_away": PARTS,
        "throw_away_transport": Path(folder_transport.__file__).read_text(),
        "vault": Path(vault_driver.__file__).read_text(),
        "lines_contract": Path(lines_contract.__file__).read_text(),
    }
    return install(tmp_path / "site", monkeypatch, modules, points)


def test_an_agent_runs_a_driver_that_was_installed_beside_it(
    distribution: Path, tmp_path: Path, make_app: Callable[..., App]
) -> None:
    agent = AgentProcess(tmp_path, "n0", "", driver="mine")
    try:
        agent.start()
        with agent.client() as client:
            app = make_app(seed=1)
            client.register("f", sandbox_id="s0", pids=[app.pid])
            assert client.dedup("s0").sandbox.state is S.DEDUP
            assert client.get("s0").driver == "mine"
            client.restore("s0", eager=True)
            app.ask()
            with pytest.raises(UnsupportedError, match=r"absent driver cannot run here: a hypervisor"):
                client.register("f", sandbox_id="s1", pids=[make_app(seed=2).pid], driver="absent")
        assert "absent driver: a hypervisor is missing: modprobe one" in agent.log_tail()
    finally:
        agent.clean()


def test_a_sandbox_may_have_no_process_at_all(
    distribution: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a file, which its driver empties and fills."""
    path, data = tmp_path / "vault-1", random.Random(1).randbytes(4 << 20)
    path.write_bytes(data)
    agent = AgentProcess(tmp_path, "n0", "", driver="vault")
    at = ["--agent", agent.address]
    try:
        agent.start()
        run = CliRunner().invoke(cli, ["sandbox", "register", "f", "--subject", str(path), "--id", "s0", *at])
        assert (run.exit_code, run.output) == (0, "s0\n")
        assert (
            f"driver vault, subject {path}"
            in CliRunner().invoke(cli, ["sandbox", "explain", "s0", *at]).output
        )
        with agent.client() as client:
            assert client.get("s0").subject == str(path)
            report = client.dedup("s0").report
            assert (path.stat().st_blocks, report.resident_bytes) == (0, 0)
            assert path.read_bytes() != data
        agent.kill()
        monkeypatch.delenv("PYTHONPATH")
        agent.set(driver="image")
        agent.start()  # beside nothing: it keeps what it cannot take back
        with agent.client() as client:
            assert client.get("s0").state is S.DEDUP
            assert "no such driver" in client.get("s0").waiting
        agent.kill()
        monkeypatch.setenv("PYTHONPATH", str(distribution.parent))
        agent.start()
        with agent.client() as client:
            client.restore("s0", eager=True)
            assert path.read_bytes()[: len(data)] == data
            client.register("f", sandbox_id="s0", subject=str(path), driver="vault", purge_kills=True)
            client.purge("s0")
            assert not path.exists()
    finally:
        agent.clean()


def test_an_agent_goes_by_a_policy_that_was_installed_beside_it(
    distribution: Path, tmp_path: Path, make_app: Callable[..., App]
) -> None:
    agent = AgentProcess(tmp_path, "n0", "", driver="image", policy="restless")
    try:
        agent.start()
        with agent.client() as client:
            client.register("f", sandbox_id="s0", pids=[make_app(seed=1).pid])
            wait_until(lambda: client.get("s0").state is S.DEDUP, "dedup'd")
            assert client.explain("s0").ops[-1].reason == "restless"
        assert "observed state dedup" in agent.log_tail()
    finally:
        agent.clean()


def test_agents_read_pages_by_a_transport_that_was_installed_beside_them(
    distribution: Path, tmp_path: Path, make_app: Callable[..., App], monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    monkeypatch.setenv("SHARED_FOLDER", str(shared))
    with Cluster(tmp_path, nodes=2, transport="folder", driver="image") as cluster:
        one, two = (agent.client() for agent in cluster.agents)
        for client, name, seed in ((one, "a", 1), (two, "b", 2)):
            app = make_app(seed=seed)
            client.register("f", sandbox_id=name, pids=[app.pid])
            report = client.dedup(name).report
            if name == "b":
                assert report.remote_pages_read > 0
                assert report.pages_by_transport == {"folder": report.remote_pages_read}
                assert client.get(name).transport_by_peer == {"n0": "folder"}
                client.restore(name, eager=True)
            app.ask()
        assert f"over folder on {shared}, TCP" in cluster.agents[0].log_tail()


def test_an_agent_does_not_start_without_the_transport_that_it_was_told(
    distribution: Path, tmp_path: Path
) -> None:
    agent = AgentProcess(tmp_path, "n0", "", transport="folder")
    try:
        with pytest.raises(AssertionError, match="there is no shared folder"):
            agent.start()
    finally:
        agent.clean()


def test_a_controller_opens_a_store_that_was_installed_beside_it(distribution: Path) -> None:
    running = ControllerProcess("--store", "tiny://somewhere/7")
    status, log = running.end()
    assert status == 0
    assert "opened tiny://somewhere/7" in log


def test_the_function_host_runs_a_contract_that_was_installed_beside_it(
    distribution: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "greeter"
    folder.mkdir()
    (folder / "greeter.py").write_text(GREETER)
    (folder / "function.toml").write_text(
        'name = "greeter"\ncontract = "lines"\nhandler = "greeter.py"\noptions = { call = "greet" }\n'
        'event = { who = "world" }\nidempotent = true\n'
    )
    agent = AgentProcess(tmp_path, "n0", "")
    socket = agent.socket.with_suffix(".host")

    def run(*arguments: str) -> str:
        done = CliRunner().invoke(cli, ["function", *arguments, "--host", str(socket)])
        assert done.exit_code == 0, done.output
        return done.stdout

    host = None
    try:
        agent.start()
        command = [sys.executable, "-m", "medes", "function", "serve", "--host", str(socket)]
        host = subprocess.Popen([*command, "--agent", agent.address, "--log-dir", str(tmp_path / "out")])
        wait_until(socket.exists, "the host listens")
        run("deploy", str(folder))
        assert json.loads(run("invoke", "greeter")) == "hello world"
        with agent.client() as client:
            wait_until(lambda: client.get("greeter-1").state is S.WARM, "its request has ended")
            client.dedup("greeter-1")
        answer = json.loads(run("invoke", "greeter", "--event", '{"who": "you"}', "--json"))
        assert (answer["result"], answer["start"]) == ("hello you again", "dedup")
        (row,) = json.loads(run("ls", "--json"))["functions"]
        assert row["contract"] == "lines"
    finally:
        if host is not None:
            host.terminate()
            assert host.wait(30) == 0
        agent.clean()
    assert [path.name for path in (tmp_path / "out").rglob("*.log")] == ["greeter-1.log"]


def test_a_case_that_was_installed_is_measured_with(distribution: Path, tmp_path: Path) -> None:
    def medes(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-P", "-m", "medes", "eval", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)

    assert {"name": "dice", "summary": "what a die shows", "missing": {}} in json.loads(
        medes("list", "--json").stdout
    )
    out = tmp_path / "out"
    ran = medes("run", "dice", "--quick", "--repeat", "3", "--out", str(out))
    assert "dice 1/3: rolled\ndice 1/3: red eyes_count 6\n" in ran.stderr
    assert report.spreads(report.read(out / "dice.jsonl")) == {
        key("eyes_count", die="red"): report.Spread(7, 6, 8, 3)
    }


def test_two_of_one_name_are_refused(distribution: Path) -> None:
    points = distribution / "entry_points.txt"
    points.write_text(points.read_text().replace("mine =", "live ="))
    importlib.invalidate_caches()
    with pytest.raises(AlreadyExistsError, match=r"throw_away:Mine both call themselves 'live'"):
        plugins.names(Kind.DRIVER)


def test_one_that_cannot_be_imported_is_named(distribution: Path) -> None:
    points = distribution / "entry_points.txt"
    points.write_text(points.read_text().replace("throw_away:Mine", "throw_away:Nobody"))
    with pytest.raises(UnsupportedError, match="throw_away:Nobody cannot be had") as raised:
        plugins.load(Kind.DRIVER, "mine")
    assert raised.value.object == "medes.drivers mine"


@pytest.mark.parametrize("kind", Kind)
def test_all_of_the_projects_own_can_be_imported(kind: Kind) -> None:
    assert all(plugins.load(kind, name) is not None for name in plugins.OWN[kind])
