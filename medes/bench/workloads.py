"""What benchmarks on real functions share: which functions they run, and percentiles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from medes.errors import InvalidArgumentError
from medes.faas import manifest, requirements


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


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Nearest-rank percentile, rounded to microseconds where the values are milliseconds; None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    rank = max(1, math.ceil(percent / 100 * len(ordered)))
    return round(ordered[rank - 1], 3)
