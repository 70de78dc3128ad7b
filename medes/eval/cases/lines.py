"""Lines of benchmarks as records of the cases that run them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from typing import Any

from medes.bench import restore
from medes.bench.workloads import select
from medes.eval.case import Absent, Context, Figure
from medes.limits import EVALUATION_REASON_CHARS_MAX

Line = Mapping[str, Any]
_END = object()


def figures(line: Line, names: Mapping[str, str], labels: Mapping[str, str]) -> Iterator[Figure]:
    """Of `names` (a line's key → the figure's name) those that were measured."""
    for key, name in names.items():
        if line.get(key) is not None:
            yield Figure(name, line[key], labels)


def absent(name: str, why: str, labels: Mapping[str, str]) -> Absent:
    """`why`: somebody's text, made a line."""
    text = " ".join("".join(c if c.isprintable() else " " for c in why).split())
    return Absent(name, text[:EVALUATION_REASON_CHARS_MAX] or "no reason given", labels)


def restores(context: Context, asked: restore.Options, only: Sequence[str], last: str) -> Iterator[Any]:
    """The lines of `medes bench restore` but those of functions whose figure `last` an interrupted run has left."""
    specs = select(None, only)
    measured = [spec.name for spec in specs if context.has(last, function=spec.name)]
    return stepwise(restore.run(specs, asked, context.progress, measured))


def stepwise(lines: AsyncGenerator[Any, None]) -> Iterator[Any]:
    """An asynchronous benchmark from a thread without an event loop. Its loop stands still between two lines; closing
    this, or a Ctrl-C, ends the benchmark as it would end itself."""

    async def step() -> Any:
        return await anext(lines, _END)

    with asyncio.Runner() as runner:
        try:
            while (line := runner.run(step())) is not _END:
                yield line
        finally:
            runner.run(lines.aclose())
