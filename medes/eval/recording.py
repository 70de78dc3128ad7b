"""A shell session as it was: commands one after the other, what each printed and when."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import select
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from medes.errors import DeadlineExceededError, FunctionError

COLUMNS = 128
COMMAND_TIMEOUT_S = 60.0
_END = "\x1e"  # record separator: what no command prints


@dataclass(frozen=True, slots=True)
class Line:
    """`at_s`: since the session began."""

    at_s: float
    text: str
    command: bool = False


def statements(script: str) -> Iterator[str]:
    """The commands of a script: lines, with what a here-document or an unfinished quotation needs."""
    held: list[str] = []
    end = ""
    for line in script.splitlines():
        if not held and not line.strip():
            continue
        held.append(line)
        if not end and "<<'" in line:
            end = line.partition("<<'")[2].partition("'")[0]
        elif end and line == end:
            end = ""
        if not end:
            yield "\n".join(held)
            held = []
    if held:
        yield "\n".join(held)


def record(script: str, shell: Sequence[str], environment: dict[str, str]) -> list[Line]:
    """Runs the commands in one shell (`shell`: a command that reads a script from its standard input); blocks.

    Raises function_error when a command fails, deadline_exceeded when one does not end.
    """
    lines: list[Line] = []
    begun = time.monotonic()
    process = subprocess.Popen(
        shell,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**environment, "COLUMNS": str(COLUMNS), "TERM": "dumb"},
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        for statement in statements(script):
            lines += [Line(time.monotonic() - begun, text, True) for text in statement.split("\n")]
            process.stdin.write(f"{statement}\nprintf '%s%d\\n' '{_END}' $?\n".encode())
            process.stdin.flush()
            lines += _output(process.stdout.fileno(), statement, begun)
        process.stdin.close()
        process.wait(COMMAND_TIMEOUT_S)
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
    return lines


def _output(fd: int, statement: str, begun: float) -> Iterator[Line]:
    deadline_s, held = time.monotonic() + COMMAND_TIMEOUT_S, b""
    while True:
        wait_s = deadline_s - time.monotonic()
        if wait_s <= 0 or not select.select([fd], [], [], wait_s)[0]:
            raise DeadlineExceededError(f"did not end within {COMMAND_TIMEOUT_S:g} s", object=statement)
        data = os.read(fd, 65536)
        if not data:
            raise FunctionError("the shell has ended", object=statement)
        *whole, held = (held + data).split(b"\n")
        for raw in whole:
            text = raw.decode(errors="replace")
            before, mark, status = text.partition(_END)
            if before or not mark:
                yield Line(time.monotonic() - begun, before.rstrip())
            if mark:
                if status != "0":
                    raise FunctionError(f"ended with {status}", object=statement)
                return


def save(lines: Sequence[Line], path: Path) -> None:
    """One line a line, so that a diff shows what changed."""
    rows = ",\n ".join(json.dumps(dataclasses.astuple(line), ensure_ascii=False) for line in lines)
    path.write_text(f"[\n {rows}\n]\n")


def load(path: Path) -> list[Line]:
    return [Line(*row) for row in json.loads(path.read_text())]
