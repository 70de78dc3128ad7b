"""The folders of native/ and of medes/ include and import downward only, in the order in which docs/design.md lists them."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def native_folders() -> list[str]:
    text = (ROOT / "docs" / "design.md").read_text()
    part = text.split("\nnative/ ", 1)[1].split("\n  bindings/", 1)[0]
    return re.findall(r"\b([a-z]+)/", "\n".join(line[:20] for line in part.splitlines()[1:]))


def test_native_includes_point_at_what_the_map_lists_before() -> None:
    folders = native_folders()
    there = {p.parent.name for p in (ROOT / "native").glob("*/*.cc")} - {"bindings", "tests", "fuzz"}
    assert set(folders) == there
    upward = [
        f"{file.relative_to(ROOT)}: {target}"
        for number, folder in enumerate(folders)
        for file in (ROOT / "native" / folder).rglob("*.*")
        for target in re.findall(r'#include "([a-z]+)/', file.read_text())
        if target not in folders[: number + 1]
    ]
    assert upward == []


def medes_rows() -> list[list[str]]:
    text = (ROOT / "docs" / "design.md").read_text()
    rows = text.split("Imports of `medes/` point downward", 1)[1].split("```\n", 2)[1]
    return [line.split() for line in rows.splitlines()]


def imported(file: Path) -> set[str]:
    """What lies directly in medes/ and is imported by this file."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "medes":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("medes."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("medes.")}
    return found - {"__version__"}


def test_imports_of_medes_point_downward() -> None:
    row_of = {name: number for number, row in enumerate(medes_rows()) for name in row}
    tops = (ROOT / "medes").iterdir()
    there = {path.stem for path in tops if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert set(row_of) == there - {"__init__", "__main__"}
    upward = [
        f"{file.relative_to(ROOT)}: {target}"
        for name, row in row_of.items()
        for file in [ROOT / "medes" / f"{name}.py", *(ROOT / "medes" / name).rglob("*.py")]
        if file.exists() and "gen" not in file.parts
        for target in imported(file)
        if row_of[target] < row
    ]
    assert upward == []


def test_a_transport_includes_what_all_share_and_no_other_transport() -> None:
    """But tls: it is what tcp runs over."""
    shared = {"tcp": {"tcp", "tls"}}
    foreign = [
        f"{file.relative_to(ROOT)}: {target}"
        for folder in (ROOT / "native" / "transport").iterdir()
        if folder.is_dir()
        for file in folder.iterdir()
        for target in re.findall(r'#include "transport/([a-z]+)/', file.read_text())
        if target not in shared.get(folder.name, {folder.name})
    ]
    assert foreign == []


def test_controller_and_agent_do_not_know_each_other() -> None:
    for one, other in (("agent", "controller"), ("controller", "agent")):
        for file in (ROOT / "medes" / one).rglob("*.py"):
            assert f"medes.{other}" not in file.read_text(), file


def test_the_agent_does_not_know_what_its_drivers_sandboxes_are() -> None:
    for file in (ROOT / "medes" / "agent").rglob("*.py"):
        assert "medes.drivers.process" not in file.read_text(), file
    for file in (ROOT / "medes" / "drivers").rglob("*.py"):
        assert "from medes.agent" not in file.read_text(), file


def test_the_function_host_and_its_contracts_do_not_know_each_other() -> None:
    """But for instances without a host, which are native ones."""
    for file in (ROOT / "medes" / "runtimes" / "contracts").rglob("*.py"):
        assert "medes.runtimes.host" not in file.read_text(), file
    for file in (ROOT / "medes" / "runtimes" / "host").rglob("*.py"):
        used = set(re.findall(r"from medes\.runtimes\.contracts(?:\.(\w+))?", file.read_text()))
        assert used <= {"contract"} or file.name == "standalone.py", file


def test_a_sandbox_entrys_fields_are_set_by_itself_alone() -> None:
    for file in (ROOT / "medes" / "agent").rglob("*.py"):
        text = file.read_text()
        if "SandboxEntry" in text and file.name != "sandbox.py":
            set_here = re.findall(r"^ *(?:self\.)?_?entry\.\w+(?:, \S+)* (?:[+|-])?= .*", text, re.MULTILINE)
            assert set_here == [], file


def test_journal_records_are_spelt_in_one_place() -> None:
    for file in (ROOT / "medes").rglob("*.py"):
        if file.name not in ("records.py", "journal.py"):  # and the format line at the head of the file
            assert '"t": ' not in file.read_text(), file
