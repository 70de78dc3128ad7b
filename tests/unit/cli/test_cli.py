"""The command line in this process: output, --json, exit codes, and what it must not import."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import click
import pytest
from medes.rpc.gen.agent_pb2_grpc import add_AgentServiceServicer_to_server

from medes.cli.main import COMMANDS, run
from medes.cli.top import by_tenant, summarize
from medes.errors import InternalError, NotFoundError
from medes.types import FunctionUsage, NodeEndpoints, NodeRecord, SandboxRecord, SandboxState
from medes.units import bytes_text, duration_text
from tests.support.fake_agent import FakeAgent
from tests.support.served import served


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeAgent]:
    fake = FakeAgent()
    with served(
        lambda s: add_AgentServiceServicer_to_server(fake, s), f"unix:{tmp_path}/agent.sock"
    ) as address:
        monkeypatch.setenv("MEDES_AGENT", address)
        yield fake


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = run(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_sandbox_from_register_to_rm(agent: FakeAgent, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "sandbox", "register", "resize", "--pid", "7", "--pid", "8", "--idle-ms", "9")
    assert (code, out) == (0, "sb-0\n")
    assert list(agent.requests[-1].pids) == [7, 8]
    assert agent.requests[-1].lifecycle.idle_period_ms == 9
    code, out, _ = call(capsys, "sandbox", "dedup", "sb-0", "--make-base")
    assert code == 0
    assert (
        "85.0 MiB saved (85.0%): 90.0 MiB gross, 5.0 MiB of base pages its share; 250.0 ms, stopped for 1.5 ms"
        in out
    )
    assert "1 page is mlocked" in out
    code, out, _ = call(capsys, "sandbox", "ls")
    assert "sb-0" in out and "dedup" in out and "100.0 MiB" in out
    code, out, _ = call(capsys, "sandbox", "ls", "--json")
    row = json.loads(out)[0]
    assert (row["state"], row["kept_bytes"], row["last_dedup"]["stage_us"]) == (
        "dedup",
        10 << 20,
        {"encode": 9},
    )
    code, out, _ = call(capsys, "sandbox", "restore", "sb-0", "--json")
    assert json.loads(out)["report"]["was_dedup"] is True
    code, out, _ = call(capsys, "sandbox", "restore", "sb-0")
    assert "warm already" in out
    code, out, _ = call(capsys, "sandbox", "rm", "sb-0", "--json")
    assert (code, json.loads(out)) == (0, {"removed": ["sb-0"]})


def test_a_list_shows_what_fits(
    agent: FakeAgent, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    call(capsys, "sandbox", "register", "f", "--pid", "7", "--id", "a")
    of_all = {"present", "tick", "touched", "saved", "ever"}
    _, out, _ = call(capsys, "sandbox", "ls")  # no terminal
    assert of_all <= set(out.splitlines()[0].split())
    monkeypatch.setattr("medes.cli.sandbox.WIDE_COLUMNS", 1000)
    _, out, _ = call(capsys, "sandbox", "ls")
    assert of_all & set(out.splitlines()[0].split()) == {"touched", "saved"}


def test_what_an_older_agent_does_not_tell_is_unknown(
    agent: FakeAgent, capsys: pytest.CaptureFixture[str]
) -> None:
    call(capsys, "sandbox", "register", "f", "--pid", "7", "--id", "a")
    agent.knows_shares = False
    _, out, _ = call(capsys, "sandbox", "dedup", "a")
    assert "90.0 MiB saved gross (90.0%), its share of base pages unknown (an older agent); 250.0 ms" in out
    _, out, _ = call(capsys, "sandbox", "ls", "--json")
    row = json.loads(out)[0]
    assert (row["saved_bytes"], row["last_dedup"]["gross_saved_bytes"]) == (None, None)
    _, out, _ = call(capsys, "sandbox", "ls")
    assert out.splitlines()[-1].split().count("?") == 4


def test_rm_tries_every_sandbox_it_is_given(agent: FakeAgent, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "c"):
        call(capsys, "sandbox", "register", "f", "--pid", "7", "--id", name)
    code, out, err = call(capsys, "sandbox", "rm", "--json", "ghost", "a", "phantom", "c")
    assert (code, json.loads(out)) == (NotFoundError.exit_code, {"removed": ["a", "c"]})
    assert [line.split(": ")[1:3] for line in err.splitlines()] == [
        ["not_found", "ghost"],
        ["not_found", "phantom"],
    ]
    assert agent.sandboxes == {}


@pytest.mark.parametrize("debug", ["", "1"])
def test_what_nobody_foresaw_is_one_line_and_a_code_of_its_own(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, debug: str
) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise KeyError("boom")

    monkeypatch.setattr("medes.cli.doctor.examine", broken)
    monkeypatch.setenv("MEDES_DEBUG", debug)
    code, out, err = call(capsys, "doctor")
    assert (code, out) == (InternalError.exit_code, "")
    assert err.splitlines()[-1].startswith("medes: internal: KeyError: 'boom' (a bug in Medes")
    assert ("Traceback" in err) == bool(debug)
    assert len(err.splitlines()) == 1 or debug


def test_interrupted_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("medes.cli.doctor.examine", interrupt)
    assert call(capsys, "doctor") == (130, "", "interrupted\n")


def test_an_interrupt_while_the_interpreter_ends_changes_nothing() -> None:
    script = (
        "import atexit, os, signal\n"
        "from medes.cli.main import main\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # whatever the tests were started with
        "atexit.register(os.kill, os.getpid(), signal.SIGINT)\n"
        "main(['--version'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("medes, version")


@pytest.mark.parametrize(
    "arguments",
    [
        ["bench", "dedup", "--schemes", "magic"],
        ["bench", "images", __file__],
    ],
)
def test_a_benchmark_that_refuses_its_arguments_prints_no_heading(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    code, out, err = call(capsys, *arguments)
    assert (code, out) == (2, ""), err


def test_help_says_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = call(capsys, "--help")
    group = import_module("medes.cli.bench").cli
    names = {name for name in group.list_commands(click.Context(group)) if name != "all"}
    told = re.search(r"^  bench +Measure:(.*(?:\n {4,}.*)*)", out, re.MULTILINE)
    assert told is not None
    assert set(re.findall(r"\w+", told[1])) == names
    for name in sorted(names):
        _, out, _ = call(capsys, "bench", name, "--help")
        assert "One JSON line per case" in " ".join(out.split()), name
    _, out, _ = call(capsys, "agent", "--help")
    assert "[0o600]" in out


def test_functions_are_listed_like_everything_else(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"instance_id": "f-1", "node_id": "n", "pid": 7, "state": "warm", "requests": 3}
    functions = [
        {"name": "f", "instances": [{**row, "warm_bytes": 3 << 20, "kept_bytes": 0}]},
        {"name": "g", "instances": []},
    ]
    monkeypatch.setattr("medes.cli.function._call", lambda *arguments: {"functions": functions})
    code, out, _ = call(capsys, "function", "ls")
    lines = [line.split() for line in out.splitlines()]
    assert code == 0
    assert lines[0] == ["function", "instance", "node", "pid", "state", "requests", "warm", "kept"]
    assert lines[1:] == [["f", "f-1", "n", "7", "warm", "3", "3.0", "MiB", "-"], ["g", *"-------"]]
    functions.clear()
    assert call(capsys, "function", "ls")[1] == "nothing is deployed\n"


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["sandbox", "restore", "ghost"], 3, "not_found: ghost: no such sandbox (medes sandbox ls)"),
        (["sandbox", "register", "f"], 2, "either pids or a cgroup"),
        (["sandbox", "register", "f", "--pid", "0"], 2, "--pid"),
        (["sandbox", "ls", "--agent", "unix:/nonexistent/a.sock"], 22, "no agent answers here: No such file"),
        (["sandbox", "ls", "--agent", "nonsense"], 2, "host:port or unix:/path"),
        (["top", "--once", "--controller", "127.0.0.1:9"], 14, "controller_unreachable"),
        (["controller", "--lease-ms", "1"], 2, "controller.lease_ms"),
        (["controller", "--config", "/nonexistent"], 2, "cannot read"),
        (["nothing"], 2, "No such command"),
    ],
)
def test_exit_codes(
    agent: FakeAgent, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, text: str
) -> None:
    got, _, err = call(capsys, *arguments)
    assert (got, text in err) == (code, True), err


def test_help_of_every_command_works(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "--help")
    assert code == 0
    offered = [name for name in COMMANDS if f"\n  {name} " in out]
    assert {"controller", "sandbox", "top"} <= set(offered)
    for name in offered:
        code, out, _ = call(capsys, name, "--help")
        assert code == 0
        assert out.startswith(f"Usage: medes {name}")


def test_sandbox_commands_import_neither_controller_nor_agent() -> None:
    """They speak rpc; a runtime's host needs no daemon's modules and no native core to use them."""
    script = (
        "import sys, medes.cli.sandbox, medes.cli.top, medes.client\n"
        "print([m for m in sys.modules if m.startswith(('medes.controller', 'medes.agent', 'medes.native'))])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


HELP_IMPORTS_NOT = (
    "grpc",
    "google",
    "rich",
    "asyncio",
    "numpy",
    "prometheus_client",
    "medes.config",
    "medes.rpc.gen",
)
LS_IMPORTS_NOT = (
    "rich",
    "numpy",
    "prometheus_client",
    "medes.config",
    "medes.native",
    "mmh3",
    "redis",
)


@pytest.mark.parametrize(
    ("arguments", "banned"),
    [
        (["--help"], HELP_IMPORTS_NOT),
        (["sandbox", "--help"], HELP_IMPORTS_NOT),
        (["sandbox", "ls", "--json"], LS_IMPORTS_NOT),
    ],
)
def test_a_command_imports_what_it_needs(
    agent: FakeAgent, arguments: list[str], banned: tuple[str, ...]
) -> None:
    """What a command costs before it does anything is what it imports."""
    script = (
        "import sys\n"
        "from medes.cli.main import run\n"
        "code = run(sys.argv[1:])\n"
        "print(*sorted(sys.modules), file=sys.stderr)\n"
        "sys.exit(code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True
    )
    assert set(done.stderr.split()).isdisjoint(banned)


def test_summaries_take_states_of_the_directory_and_memory_of_the_live_nodes() -> None:
    records = [
        SandboxRecord("a", "n", "f", "d", SandboxState.DEDUP, 100, 20, True),
        SandboxRecord("b", "n", "f", "d", SandboxState.WARM, 100, 0),
        SandboxRecord("c", "n", "g", "d", SandboxState.WARM, 100, 0),
    ]
    usage = (
        FunctionUsage(
            "f",
            "t1",
            2,
            1,
            warm_bytes=100,
            kept_bytes=20,
            base_share_bytes=50,
            saved_bytes=30,
            touched_bytes=4,
            recent_saved_bytes=25,
        ),
        FunctionUsage("g", "t2", 1, 0),
    )
    nodes = [NodeRecord(NodeEndpoints("n"), alive=True, functions=usage)]
    dead = NodeRecord(NodeEndpoints("m"), alive=False, functions=usage)
    f, g = summarize(records, [*nodes, *nodes, dead])
    assert (f["sandboxes"], f["bases"], f["states"]) == (2, 1, {"dedup": 1, "warm": 1})
    assert (f["warm_bytes"], f["base_share_bytes"], f["saved_bytes"], f["saved_ratio"]) == (200, 100, 60, 0.3)
    assert (f["touched_bytes"], f["recent_saved_bytes"]) == (8, 50)
    assert (g["saved_ratio"], g["recent_saved_bytes"]) == (None, None)  # of a node that tells no means
    one, two = by_tenant([*nodes, dead])
    assert (one["tenant"], one["sandboxes"], one["saved_bytes"], one["saved_ratio"]) == ("t1", 2, 30, 0.3)
    assert (two["tenant"], two["saved_ratio"]) == ("t2", None)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (-(3 << 30), "-3.0 GiB"), (5 << 40, "5.0 TiB")],
)
def test_bytes_text(value: int, text: str) -> None:
    assert bytes_text(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(5e-6, "5 µs"), (0.0123, "12.3 ms"), (2, "2.0 s"), (600, "10 min"), (9000, "2.5 h")]
)
def test_duration_text(value: float, text: str) -> None:
    assert duration_text(value) == text
