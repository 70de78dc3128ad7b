"""What benchmarks on real functions share: which functions they run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medes.errors import InvalidArgumentError
from medes.runtimes import manifest
from medes.runtimes.host import requirements


def select(directory: Path | None, only: Sequence[str] = ()) -> list[manifest.FunctionSpec]:
    """The functions of a folder (default: the project's ten), or the named ones. Raises invalid_argument for a
    name that is not there, and what manifest.load_all raises."""
    specs = manifest.load_all(directory or manifest.bundled_directory())
    requirements.check(specs)
    unknown = set(only) - {spec.name for spec in specs}
    if unknown:
        raise InvalidArgumentError(
            "no such function", object=sorted(unknown)[0], hint="one of " + ", ".join(s.name for s in specs)
        )
    return [spec for spec in specs if not only or spec.name in only]
