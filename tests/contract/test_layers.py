"""The folders of native/, medes/ and medes/agent/ include and import downward only, in the order in which docs/design.md
lists them."""

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


def rows_after(sentence: str) -> dict[str, int]:
    """Name → number of its row in the drawing below a sentence of docs/design.md; the topmost is 0."""
    text = (ROOT / "docs" / "design.md").read_text()
    rows = text.split(sentence, 1)[1].split("```\n", 2)[1]
    return {name: number for number, row in enumerate(rows.splitlines()) for name in row.split()}


def parts_of(folder: Path) -> set[str]:
    """The modules and rooms that lie directly in a package."""
    there = {p.stem for p in folder.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    return there - {"__init__", "__main__"}


def files_of(folder: Path, part: str) -> list[Path]:
    files = [folder / f"{part}.py", *(folder / part).rglob("*.py")]
    return [file for file in files if file.exists() and "gen" not in file.parts]


def imported(file: Path, package: str = "medes") -> set[str]:
    """What lies directly in the package and is imported by this file, for type checkers only as well."""
    found = set()
    below = f"{package}."
    depth = below.count(".")
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == package:
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(below):
            found.add(node.module.split(".")[depth])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[depth] for alias in node.names if alias.name.startswith(below)}
    return found - {"__version__"}


def test_imports_of_medes_point_downward() -> None:
    row_of = rows_after("Imports of `medes/` point downward")
    assert set(row_of) == parts_of(ROOT / "medes")
    upward = [
        f"{file.relative_to(ROOT)}: {target}"
        for name, row in row_of.items()
        for file in files_of(ROOT / "medes", name)
        for target in imported(file)
        if row_of[target] < row
    ]
    assert upward == []


def test_imports_of_the_agents_rooms_point_at_a_lower_row() -> None:
    folder = ROOT / "medes" / "agent"
    row_of = rows_after("Inside `medes/agent` every import points at a row below its own")
    assert set(row_of) == parts_of(folder)
    others = [
        f"{file.relative_to(ROOT)}: {target}"
        for name, row in row_of.items()
        for file in files_of(folder, name)
        for target in imported(file, "medes.agent")
        if target != name and row_of[target] <= row
    ]
    assert others == []


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
