"""Tables in docs/ say what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from medes.rpc.gen import agent_pb2, controller_pb2, peer_pb2

from medes.cli.demo import EXIT_NOT_VERIFIED
from medes.cli.main import COMMANDS, EXIT_INTERRUPTED
from medes.config import AgentSettings, ControllerSettings, load
from tests.support import docs_rows

DOCS = Path(__file__).resolve().parents[2] / "docs"


def lines(name: str) -> set[str]:
    return set((DOCS / name).read_text().splitlines())


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("protocol.md", docs_rows.error_rows()),
        ("operations.md", docs_rows.exit_rows()),
        ("operations.md", docs_rows.setting_rows(AgentSettings)),
        ("operations.md", docs_rows.setting_rows(ControllerSettings)),
        ("operations.md", docs_rows.override_rows()),
        ("metrics.md", [row for rows in docs_rows.metric_rows() for row in rows]),
    ],
)
def test_every_row_is_there(name: str, rows: list[str]) -> None:
    assert rows
    assert [row for row in rows if row not in lines(name)] == []


def test_no_metric_is_listed_that_does_not_exist() -> None:
    listed = set(re.findall(r"^\| `(medes_\w+)` \|", (DOCS / "metrics.md").read_text(), re.MULTILINE))
    known = {row.split("`")[1] for rows in docs_rows.metric_rows() for row in rows}
    assert listed == known


def test_every_call_and_command_is_described() -> None:
    protocol, operations = (DOCS / "protocol.md").read_text(), (DOCS / "operations.md").read_text()
    for module in (agent_pb2, controller_pb2, peer_pb2):
        for service in module.DESCRIPTOR.services_by_name.values():
            assert service.name in protocol
    for method in agent_pb2.DESCRIPTOR.services_by_name["AgentService"].methods:
        assert f"`{method.name}`" in protocol
    for method in peer_pb2.DESCRIPTOR.services_by_name["PeerService"].methods:
        assert f"`{method.name}`" in protocol
    assert [name for name in COMMANDS if f"`medes {name}" not in operations] == []


def test_every_exit_code_of_a_command_is_listed() -> None:
    listed = set(re.findall(r"^\| (\d+) \|", (DOCS / "operations.md").read_text(), re.MULTILINE))
    assert {str(EXIT_NOT_VERIFIED), str(EXIT_INTERRUPTED), "0"} <= listed


# What tests hand to processes they start themselves.
OWN_VARIABLES = {"MEDES_RDMA_GUEST"}


def test_every_variable_and_target_is_described() -> None:
    root, text = DOCS.parent, (DOCS / "operations.md").read_text()
    reads = re.compile(
        r"""(?:environ(?:\.get)?[\[(]|getenv\(|envvar=|_VARIABLE = |option\("--\w+", )"(MEDES_\w+)"|\$\{([A-Z_]+_SECONDS)"""
    )
    found: set[str] = set()
    for folder, pattern in (("medes", "*.py"), ("tests", "*.py"), ("native", "*.cc"), ("tests", "*.sh")):
        for source in (root / folder).rglob(pattern):
            found |= {name for pair in reads.findall(source.read_text()) for name in pair if name}
    assert {
        "MEDES_SEED",
        "MEDES_CHAOS_S",
        "MEDES_FAULT",
        "MEDES_CRIU",
        "MEDES_DEBUG",
        "FUZZ_SECONDS",
    } <= found
    assert sorted(name for name in found - OWN_VARIABLES if f"| `{name}` |" not in text) == []
    with_arguments = re.findall(
        r"^([\w-]+):[^\n]*\n(?:\t[^\n]*\n)*\t[^\n]*\$\(ARGS\)", (root / "Makefile").read_text(), re.MULTILINE
    )
    assert len(with_arguments) >= 5
    assert [name for name in with_arguments if f"| `make {name}` |" not in text] == []


def test_the_example_settings_are_valid(tmp_path: Path) -> None:
    text = (DOCS / "operations.md").read_text()
    example = re.search(r"```toml\n(.*?)```", text, re.DOTALL)
    assert example
    file = tmp_path / "medes.toml"
    file.write_text(example[1])
    agent = load(AgentSettings, file, {})
    assert agent.for_function("resize").idle_period_s == 10
    assert load(ControllerSettings, file, {}).listen == "10.0.0.1:7070"


def test_documents_name_no_missing_file() -> None:
    root = DOCS.parent
    for name in ("protocol.md", "operations.md", "metrics.md"):
        for target in re.findall(r"`(deploy/[\w./-]+\w)`", (DOCS / name).read_text()):
            assert (root / target).exists(), target
