"""Settings: sources in order of precedence, and every kind of wrong value."""

from __future__ import annotations

from pathlib import Path

import pytest

from medes.config import AgentSettings, ControllerSettings, load, parse_size
from medes.errors import InvalidArgumentError


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "medes.toml"
    path.write_text(text)
    return path


def test_defaults_are_valid_and_the_papers() -> None:
    settings = load(AgentSettings, environment={})
    assert (settings.idle_period_s, settings.keep_alive_period_s, settings.keep_dedup_period_s) == (
        60,
        600,
        900,
    )
    assert load(ControllerSettings, environment={}).base_threshold == 40
    assert settings.node
    assert str(settings.shm_path) == f"/dev/shm/medes-{settings.node}"


def test_flags_beat_environment_beats_file(tmp_path: Path) -> None:
    path = write(
        tmp_path, '[agent]\nnode_id = "file"\nidle_period_s = 1\nkeep_alive_period_s = 20\nlog_json = true\n'
    )
    environment = {"MEDES_AGENT_NODE_ID": "env", "MEDES_AGENT_IDLE_PERIOD_S": "3"}
    settings = load(AgentSettings, path, environment, {"node_id": "flag", "idle_period_s": None})
    assert (settings.node_id, settings.idle_period_s, settings.keep_alive_period_s) == ("flag", 3.0, 20.0)
    assert settings.log_json


def test_tables_sizes_and_overrides(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        '[agent]\nmemory_limit_bytes = "8GiB"\n[agent.tls]\nca = "/ca"\n'
        "[agent.functions.resize]\nidle_period_s = 5\ndisabled = true\nfork_sharers_max = 8\n[controller]\nlease_ms = 9000\n",
    )
    settings = load(
        AgentSettings, path, {"MEDES_AGENT_TLS_CERTIFICATE": "/c", "MEDES_AGENT_TLS_PRIVATE_KEY": "/k"}
    )
    assert settings.memory_limit_bytes == 8 << 30
    assert (settings.tls.ca, settings.tls.certificate, settings.tls.private_key) == ("/ca", "/c", "/k")
    resize, other = settings.for_function("resize"), settings.for_function("other")
    assert (resize.idle_period_s, resize.keep_alive_period_s, resize.disabled) == (5.0, 600.0, True)
    assert (other.idle_period_s, other.disabled) == (60.0, False)
    assert (resize.fork_sharers_max, other.fork_sharers_max) == (8, 1)
    assert load(ControllerSettings, path, {}).lease_ms == 9000


@pytest.mark.parametrize(
    ("text", "controllers"),
    [
        ('controllers = ["a:1", "unix:/b"]', ("a:1", "unix:/b")),
        ('controllers = "a:1, unix:/b"', ("a:1", "unix:/b")),
        ('controller = "a:1"', ("a:1",)),
        ("controllers = []", ()),
        ('controller = ""', ()),
        ("", ("127.0.0.1:7070",)),
    ],
)
def test_controllers_of_a_file(tmp_path: Path, text: str, controllers: tuple[str, ...]) -> None:
    assert load(AgentSettings, write(tmp_path, f"[agent]\n{text}\n"), {}).controllers == controllers


def test_controllers_under_their_old_name_of_every_source(tmp_path: Path) -> None:
    path = write(tmp_path, '[agent]\ncontroller = "file:1"\n')
    old, new = {"MEDES_AGENT_CONTROLLER": "env:1"}, {"MEDES_AGENT_CONTROLLERS": "env:1,env:2"}
    assert load(AgentSettings, path, old).controllers == ("env:1",)
    assert load(AgentSettings, path, new).controllers == ("env:1", "env:2")
    assert load(AgentSettings, path, old, {"controllers": "flag:1,flag:2"}).controllers == (
        "flag:1",
        "flag:2",
    )
    assert load(AgentSettings, path, new, {"controller": "flag:1"}).controllers == ("flag:1",)
    with pytest.raises(InvalidArgumentError, match=r"MEDES_AGENT_CONTROLLERS.*old name"):
        load(AgentSettings, path, {**old, **new})
    with pytest.raises(InvalidArgumentError, match=r"--controllers.*old name"):
        load(AgentSettings, path, {}, {"controller": "a:1", "controllers": "b:1"})
    with pytest.raises(InvalidArgumentError, match=r"agent.controllers.*old name"):
        load(AgentSettings, write(tmp_path, '[agent]\ncontroller = "a:1"\ncontrollers = ["b:1"]\n'), {})


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[agent]\nidle_perod_s = 1", r"agent.idle_perod_s.*did you mean idle_period_s"),
        ("[agent]\nidle_period_s = -1", r"agent.idle_period_s.*at least 0"),
        ("[agent]\nidle_period_s = nan", r"finite"),
        ('[agent]\nidle_period_s = "soon"', r"agent.idle_period_s"),
        ("[agent]\nidle_period_s = true", r"not a boolean"),
        ("[agent]\nfault_threads = 1.5", r"whole number"),
        ("[agent]\nnode_id = 5", r"must be text"),
        ('[agent]\nnode_id = "../x"', r"not a name"),
        ('[agent]\ntransport = "carrier-pigeon"', r"one of auto, local, tcp, rdma"),
        ('[agent]\nlisten = "1.2.3.4:80"', r"unix socket"),
        ('[agent]\nshm_dir = "relative"', r"absolute folder"),
        ('[agent]\nstate_dir = "/a/../etc"', r"absolute folder"),
        ('[agent]\ncontroller = "nowhere"', r"agent.controllers.*nowhere.*host:port"),
        ('[agent]\ncontrollers = ["a:1", "nowhere"]', r"agent.controllers.*nowhere.*host:port"),
        ('[agent]\ncontrollers = ["a:1", "b:1", "a:1"]', r"agent.controllers.*'a:1' is named twice"),
        ("[agent]\ncontrollers = [5]", r"agent.controllers.*list of texts"),
        ("[agent]\ncontrollers = 5", r"agent.controllers.*list of texts"),
        ("[agent]\ncontrollers = " + repr([f"a:{i + 1}" for i in range(17)]), r"at most 16"),
        ('[agent]\nlog_json = "maybe"', r"true or false"),
        ('[agent]\nmemory_limit_bytes = "8 GiBi"', r"not a size"),
        ("[agent]\ntls = 5", r"must be a table"),
        ('[agent.tls]\ncertificate = "/c"', r"private_key"),
        ("[agent.functions.f]\nkeep_alive_period_s = -3", r"agent.functions.f.keep_alive_period_s"),
        ("[agent]\nidle_period_s = 600", r"agent.keep_alive_period_s.*never be dedup'd"),
        (
            "[agent.functions.f]\nkeep_alive_period_s = 30",
            r"agent.functions.f.keep_alive_period_s.*never be dedup'd",
        ),
        ("[agent.functions.f]\nactivity_lease_s = 0", r"agent.functions.f.activity_lease_s"),
        ('[agent]\ndriver = "vm"', r"one of live, image"),
        ('[agent.functions."a b"]\ndisabled = true', r"not a name"),
        ("[agnt]\nx = 1", r"unknown table \[agnt\]"),
        ("agent = 5", r"must be a table"),
        ("[agent", r"not TOML"),
    ],
)
def test_bad_files_name_the_setting(tmp_path: Path, text: str, match: str) -> None:
    with pytest.raises(InvalidArgumentError, match=match):
        load(AgentSettings, write(tmp_path, text), {})


def test_a_function_without_timers_may_have_any_periods(tmp_path: Path) -> None:
    text = "[agent.functions.f]\nkeep_alive_period_s = 1\ndisabled = true\n"
    assert load(AgentSettings, write(tmp_path, text), {}).for_function("f").disabled


def test_controller_checks() -> None:
    with pytest.raises(InvalidArgumentError, match="two heartbeats"):
        load(ControllerSettings, flags={"lease_ms": "1500"}, environment={})
    with pytest.raises(InvalidArgumentError, match="unknown store"):
        load(ControllerSettings, flags={"store": "etcd"}, environment={})
    with pytest.raises(InvalidArgumentError, match="cannot read"):
        load(ControllerSettings, Path("/nonexistent/medes.toml"), {})


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("0", 0), ("4096", 4096), ("512MiB", 512 << 20), ("1.5GB", 1_500_000_000), ("2 kib", 2048)],
)
def test_sizes(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["600", "420", "0o1600", "0o620", "0o060", "0o666", "0o606", "0"])
def test_a_mode_without_its_prefix_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="0o600"):
        load(AgentSettings, write(tmp_path, f"[agent]\nlisten_mode = {text}\n"), {})


def test_modes_as_text_and_in_the_file(tmp_path: Path) -> None:
    assert load(AgentSettings, write(tmp_path, "[agent]\nlisten_mode = 0o660\n"), {}).listen_mode == 0o660
    assert load(AgentSettings, None, {"MEDES_AGENT_LISTEN_MODE": "0o660"}).listen_mode == 0o660
    with pytest.raises(InvalidArgumentError, match="write 0o660"):
        load(AgentSettings, None, {"MEDES_AGENT_LISTEN_MODE": "660"})


def test_a_variable_that_is_no_setting_is_refused() -> None:
    with pytest.raises(
        InvalidArgumentError, match=r"MEDES_AGENT_IDEL_PERIOD_S: .*MEDES_AGENT_IDLE_PERIOD_S\?"
    ):
        load(AgentSettings, None, {"MEDES_AGENT_IDEL_PERIOD_S": "3"})
    with pytest.raises(InvalidArgumentError, match="MEDES_CONTROLLER_TLS_CA"):
        load(ControllerSettings, None, {"MEDES_CONTROLLER_TLS_CAA": "/x"})
    with pytest.raises(InvalidArgumentError, match="no such setting"):
        load(AgentSettings, None, {"MEDES_AGENT_FUNCTIONS": "x"})


def test_what_kubernetes_and_other_parts_set_is_left_alone() -> None:
    environment = {
        "MEDES_AGENT": "unix:/run/a.sock",
        "MEDES_CONTROLLER_LISTEN": "127.0.0.1:1",  # the controller's business
        "MEDES_AGENT_SERVICE_HOST": "10.0.0.1",
        "MEDES_AGENT_SERVICE_PORT_GRPC": "7070",
        "MEDES_AGENT_PORT": "tcp://10.0.0.1:7070",
        "MEDES_AGENT_PORT_7070_TCP_ADDR": "10.0.0.1",
    }
    assert load(AgentSettings, None, environment) == load(AgentSettings, None, {})
