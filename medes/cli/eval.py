"""medes eval {list,run,draw}: evaluation cases, the project's own and those of installed distributions."""

from __future__ import annotations

import contextlib
import os
import traceback
from pathlib import Path

import click

from medes import plugins
from medes.cli.format import table
from medes.cli.options import DEBUG_VARIABLE, json_option, print_error, print_json
from medes.errors import IoError, MedesError, UnsupportedError
from medes.eval import running
from medes.eval.running import Ending, Outcome
from medes.limits import EVALUATION_REPETITIONS_MAX
from medes.plugins import Kind


@click.group()
def cli() -> None:
    """Measure with evaluation cases: repeated, resumed, one file a case."""


@cli.command("list")
@json_option
def list_cases(as_json: bool) -> None:
    """List the cases, and what this machine lacks for each."""
    rows = [_described(name) for name in plugins.names(Kind.EVALUATION_CASE)]
    if as_json:
        print_json([{"name": name, "summary": text, "missing": lacks} for name, text, lacks in rows])
        return
    table(
        ["case", "measures", "missing"],
        [[name, text, "; ".join(f"{k} → {v}" for k, v in lacks.items())] for name, text, lacks in rows],
    )


def _described(name: str) -> tuple[str, str, dict[str, str]]:
    """Name, summary and what is missing, which for a case that cannot be loaded is the case."""
    try:
        case = running.load(name)
        return name, case.summary, case.missing()
    except UnsupportedError as error:
        return name, "", {error.code: str(error)}


@cli.command("run")
@click.argument("cases", nargs=-1, metavar="[CASE]...")
@click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the files, CASE.jsonl; is made. What is complete in it is not measured again.",
)
@click.option("--quick", is_flag=True, help="As little as possible, to see that it runs.")
@click.option(
    "--repeat",
    "repetitions",
    type=click.IntRange(1, EVALUATION_REPETITIONS_MAX),
    default=1,
    show_default=True,
    help="How often each case is measured.",
)
@json_option
def run_cases(cases: tuple[str, ...], out: Path, quick: bool, repetitions: int, as_json: bool) -> int:
    """Measure with these cases, or with all that can run here. An interrupted run goes on when it is called again.

    Ends with the code of the first failure; a case that was named and cannot run here is one.
    """
    known = plugins.names(Kind.EVALUATION_CASE)
    for name in cases:
        if name not in known:
            raise UnsupportedError(f"there is no case {name!r}", hint="one of " + ", ".join(known))
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise IoError(f"cannot be made: {error.strerror}", object=str(out)) from error
    endings = []
    for name in dict.fromkeys(cases or known):
        ending = running.run(name, out, quick=quick, repetitions=repetitions, progress=_progress)
        if ending.error is not None:
            _show(ending.error)
        endings.append(ending)
    _report(endings, out, as_json)
    failures = [e.error for e in endings if e.error and (e.outcome is Outcome.FAILED or cases)]
    return failures[0].exit_code if failures else 0


def _show(error: MedesError) -> None:
    print_error(error)
    if error.__cause__ is not None and os.environ.get(DEBUG_VARIABLE):
        traceback.print_exception(error.__cause__)


def _progress(text: str) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody looks on any more: it is measured all the same
        click.echo(text, err=True)


def _report(endings: list[Ending], out: Path, as_json: bool) -> None:
    counts = {outcome.value: sum(e.outcome is outcome for e in endings) for outcome in Outcome}
    rows = [
        {
            "name": e.case,
            "outcome": e.outcome,
            "records": e.records,
            "file": str(file) if (file := running.file_of(out, e.case)).exists() else "",
            "why": str(e.error or ""),
        }
        for e in endings
    ]
    if as_json:
        print_json({"cases": rows, **counts})
        return
    table(
        ["case", "", "records", "in"],
        [
            [e.case, e.outcome.value, str(e.records), str(row["why"] or row["file"])]
            for e, row in zip(endings, rows, strict=True)
        ],
    )
    click.echo(", ".join(f"{count} {what}" for what, count in counts.items()))


@cli.command("draw")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@json_option
def draw(folder: Path, as_json: bool) -> None:
    """Draw the pictures whose data lie in a folder, as SVG beside them."""
    from medes.eval.pictures import draw

    drawn = [str(path) for path in draw(folder)]
    if as_json:
        print_json({"drawn": drawn})
    else:
        click.echo("\n".join(drawn) or "nothing to draw: no files of the cases with pictures")
