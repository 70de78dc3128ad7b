"""What the project's own cases need of a machine; each answers as `Case.missing` does."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable

from medes import native
from medes.runtimes import manifest
from medes.runtimes.host import requirements


def live_driver() -> dict[str, str]:
    return dict(native.probe_live())


def functions() -> dict[str, str]:
    """Of all of the project's ten."""
    specs = manifest.load_all(manifest.bundled_directory())
    lacking = {name for spec in specs for name in requirements.missing_modules(spec)}
    return {f"python {name}": "pip install 'medes[functions]'" for name in sorted(lacking)}


def packages(names: Iterable[str], extra: str) -> dict[str, str]:
    """Of the importable names those that are not there; `extra`: of the distribution, that has them."""
    return {
        f"python {name}": f"pip install 'medes[{extra}]'"
        for name in names
        if importlib.util.find_spec(name) is None
    }
