"""Tables in docs/ say what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from medes.rpc.gen import agent_pb2, controller_pb2, peer_pb2

from medes.cli.main import COMMANDS
from medes.config import AgentSettings, ControllerSettings, load
from tests.support import docs_tables

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_tables_are_what_the_code_says() -> None:
    """Otherwise `make tables`."""
    texts = {path: path.read_text() for path in DOCS.rglob("*.md")}
    assert sorted(n for text in texts.values() for n in docs_tables.names(text)) == sorted(docs_tables.TABLES)
    assert all(make() for make in docs_tables.TABLES.values())
    assert [path.name for path, text in texts.items() if docs_tables.written(text) != text] == []


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


def test_the_map_for_contributors_names_what_is_there() -> None:
    root = DOCS.parent
    names = re.findall(
        r"`((?:medes|native|tests|docs|deploy|proto)/[\w./-]+)`", (root / "CONTRIBUTING.md").read_text()
    )
    assert len(names) > 30
    assert [n for n in names if "NAME" not in n and not (root / n).exists()] == []


def test_the_kinds_of_page_are_those_of_the_codec() -> None:
    source = (DOCS.parent / "native" / "codec" / "page_kinds.h").read_text()
    rows = re.findall(r"\{EntryKind::(\w+), PageKind::\w+, GroupPart::(\w+), ", source)
    text = (DOCS / "patch-format.md").read_text()
    told = re.findall(r"^\| (\w+) \| (\d) \| .* \| (?:(\w+) part)? ?\|$", text, re.MULTILINE)
    assert told == [(name, str(i), "" if part == "none" else part) for i, (name, part) in enumerate(rows)]
    assert len(rows) >= 7


def slugs(text: str) -> set[str]:
    """The anchors of a document's headings, as its viewers make them."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower().replace("`", "")).replace(" ", "-") for h in headings}


def documents() -> list[Path]:
    root = DOCS.parent
    return [*root.glob("*.md"), *(root / "deploy").glob("**/*.md"), *DOCS.rglob("*.md")]


@pytest.mark.parametrize("path", documents(), ids=lambda p: str(p.relative_to(DOCS.parent)))
def test_links_lead_somewhere(path: Path) -> None:
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if target.startswith("http"):
            continue
        file, _, anchor = target.partition("#")
        there = path.parent / file if file else path
        if not there.exists() or (
            anchor and there.suffix == ".md" and anchor not in slugs(there.read_text())
        ):
            wrong.append(target)
    assert wrong == []
