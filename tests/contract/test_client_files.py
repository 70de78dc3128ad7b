"""medes-client's files need nothing that only `medes` has: a wheel without one of them fails at its user's first import."""

from __future__ import annotations

import ast
import importlib.util
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SDIST = tomllib.loads((ROOT / "deploy" / "client" / "pyproject.toml").read_text())["tool"]["hatch"]["build"][
    "targets"
]["sdist"]["force-include"]
EXCLUDED = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["scikit-build"]["wheel"]["exclude"]


def own_files() -> list[Path]:
    """As the build hook chooses them."""
    hook = ast.parse((ROOT / "deploy" / "client" / "hatch_build.py").read_text())
    values = {
        statement.targets[0].id: ast.literal_eval(statement.value)
        for statement in hook.body
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)
    }
    package = ROOT / "medes"
    found = {path for pattern in values["FILES"] for path in package.glob(pattern)}
    return sorted(found - {package / name for name in values["SERVERS"]})


def modules(path: Path) -> set[str]:
    """What a file imports of the package, at its top or later."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in found if name == "medes" or name.startswith("medes.")}


@pytest.mark.parametrize(
    "path", [p for p in own_files() if p.suffix == ".py"], ids=lambda p: str(p.relative_to(ROOT))
)
def test_it_imports_only_what_its_distribution_has(path: Path) -> None:
    own = {p.relative_to(ROOT).with_suffix("") for p in own_files()}
    for name in modules(path):
        place = Path(*name.split("."))
        if name.startswith("medes.rpc.gen") or not is_module(place):
            continue
        assert place in own or place / "__init__" in own, f"{name} is not in medes-client"


def is_module(place: Path) -> bool:
    return (ROOT / place).with_suffix(".py").is_file() or (ROOT / place / "__init__.py").is_file()


def test_the_three_lists_agree() -> None:
    """Wheel of the client, its archive of sources, and what the wheel of medes leaves to it."""
    assert importlib.util.find_spec("medes.client") is not None
    top = {str(p.relative_to(ROOT)) for p in own_files() if p.parent == ROOT / "medes"}
    assert top == {name for name in SDIST.values() if name.count("/") == 1 and Path(name).suffix}
    assert top == {name for name in EXCLUDED if name.count("/") == 1}
