"""A part of one's own, held to its contract by the suite of its kind: the environment names a class that makes it, as each of
the files `*_cases.py` here says. `MEDES_DRIVER_CASE=my_package.conformance:VmCase pytest tests/conformance/test_drivers.py`."""

from __future__ import annotations

import importlib
import os
from typing import Any


def named_case(variable: str) -> list[Any]:
    """The class that a variable names as `module:Class`; empty where it is not set. Raises what importing it does."""
    named = os.environ.get(variable)
    if not named:
        return []
    module, _, attribute = named.partition(":")
    return [getattr(importlib.import_module(module), attribute)]
