"""Hooks around a dedup op, with the names of AWS's snapshot_restore_py: a function refreshes its clocks,
connections and random numbers in them.

    from medes.runtimes.instance.hooks import register_after_restore

    @register_after_restore
    def reconnect(): ...

Functions written for AWS may keep `from snapshot_restore_py import …`: the instance runner answers that import
with this module where the package is not installed, and runs the hooks registered with either.
Before-hooks run in reverse order of registration, after-hooks in order.
"""

import sys
from collections.abc import Callable
from typing import Any

Hook = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]

_before: list[Hook] = []
_after: list[Hook] = []


def register_before_snapshot(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Callable[..., Any]:
    """Calls func(*args, **kwargs) before each dedup op, whoever asked for it. Usable as a decorator."""
    _before.append((func, args, kwargs))
    return func


def register_after_restore(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Callable[..., Any]:
    """Calls func(*args, **kwargs) after a restore, before the request that caused it. Usable as a decorator."""
    _after.append((func, args, kwargs))
    return func


def get_before_snapshot() -> list[Hook]:
    """The before-hooks in order of registration."""
    return _before


def get_after_restore() -> list[Hook]:
    """The after-hooks in order of registration."""
    return _after


def count(phase: str) -> int:
    """How many hooks are registered for phase "before_snapshot" or "after_restore"."""
    return len(_of(phase))


def run(phase: str) -> int:
    """Runs the hooks of a phase and says how many ran; a hook's exception is the caller's, and the hooks after
    it do not run."""
    hooks = _of(phase)
    if phase == "before_snapshot":
        hooks.reverse()
    for func, args, kwargs in hooks:
        func(*args, **kwargs)
    return len(hooks)


def _of(phase: str) -> list[Hook]:
    hooks = list(_before if phase == "before_snapshot" else _after)
    theirs = sys.modules.get("snapshot_restore_py")
    if theirs is not None and theirs is not sys.modules[__name__]:
        getter = getattr(theirs, "get_" + phase, None)
        hooks.extend(getter() if getter is not None else ())
    return hooks
