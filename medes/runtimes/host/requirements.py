"""What functions import and is not installed: found before anything is started."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterable
from importlib.machinery import PathFinder
from pathlib import Path

from medes.errors import UnsupportedError
from medes.runtimes.manifest import FunctionSpec, bundled_directory

CODE_BYTES_MAX = 1 << 20


def missing_modules(spec: FunctionSpec) -> list[str]:
    """Modules that the handler's file imports as it is loaded, and nobody has. Code that cannot be read or parsed is
    left to the instance, which says what is wrong with it."""
    path = spec.folder / (spec.handler.partition(":")[0].replace(".", "/") + ".py")
    try:
        with path.open("rb") as file:
            tree = ast.parse(file.read(CODE_BYTES_MAX))
    except (OSError, SyntaxError, ValueError):
        return []
    names: set[str] = set()
    for statement in tree.body:  # what stands in a try, an if or a function may be meant to be missing
        if isinstance(statement, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom) and statement.module and not statement.level:
            names.add(statement.module.partition(".")[0])
    return sorted(name for name in names if not _there(name, spec.folder))


def _there(name: str, folder: Path) -> bool:
    try:
        return (
            PathFinder.find_spec(name, [str(folder)]) is not None
            or importlib.util.find_spec(name) is not None
        )
    except (ImportError, ValueError):
        return True  # there, and odd


def check(specs: Iterable[FunctionSpec]) -> None:
    """Raises unsupported that names what is missing, for which functions, and how to get it."""
    lacking = [(spec, found) for spec in specs if (found := missing_modules(spec))]
    if not lacking:
        return
    modules = sorted({name for _, found in lacking for name in found})
    ours = all(spec.folder.is_relative_to(bundled_directory()) for spec, _ in lacking)
    raise UnsupportedError(
        f"not installed: {', '.join(modules)}",
        object="functions " + ", ".join(sorted(spec.name for spec, _ in lacking)),
        hint="pip install 'medes[functions]'" if ours else f"pip install {' '.join(modules)}",
    )
