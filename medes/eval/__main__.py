"""`python -m medes.eval FOLDER`: records the quick start of the README two folders up in a shell of its own (as root)."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import click

from medes.eval import recording
from medes.eval.pictures import SESSION
from medes.eval.quick_start import OWN_MACHINE, by_hand


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
def main(folder: Path) -> None:
    unshare, python = shutil.which("unshare"), shutil.which("python3")
    if unshare is None or python is None:
        raise click.ClickException("unshare and python3 are needed")
    apart = [unshare, "--mount", "--net", "--pid", "--fork", "--mount-proc"]
    shell = [*apart, "bash", "-c", OWN_MACHINE + "exec bash", python]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MEDES_")}
    readme = folder.resolve().parents[1] / "README.md"
    recording.save(recording.record(by_hand(readme), shell, environment), folder / f"{SESSION}.json")


if __name__ == "__main__":
    main()
