"""Shell sessions: recorded as they were, drawn as they were recorded."""

from __future__ import annotations

import os
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from medes.errors import FunctionError
from medes.eval import recording, terminal
from medes.eval.recording import COLUMNS, Line, statements

SCRIPT = """
one=$(echo 1)
cat >"$FILE" <<'END'
two

END
echo "$one"; cat "$FILE"
"""


def session(script: str, **environment: str) -> list[Line]:
    return recording.record(script, ["bash"], {**os.environ, **environment})


def test_here_documents_stay_with_their_command() -> None:
    assert list(statements(SCRIPT)) == [
        "one=$(echo 1)",
        "cat >\"$FILE\" <<'END'\ntwo\n\nEND",
        'echo "$one"; cat "$FILE"',
    ]


def test_a_session_is_what_was_typed_and_what_was_printed(tmp_path: Path) -> None:
    lines = session(SCRIPT, FILE=str(tmp_path / "file"))
    assert [line.text for line in lines if not line.command] == ["1", "two", ""]
    assert next(line.text for line in lines if line.command) == "one=$(echo 1)"
    assert [line.at_s for line in lines] == sorted(line.at_s for line in lines)
    recording.save(lines, tmp_path / "session.json")
    assert recording.load(tmp_path / "session.json") == lines


def test_a_command_that_fails_ends_the_recording() -> None:
    with pytest.raises(FunctionError, match="ended with 3") as raised:
        session("echo fine\n(exit 3)\necho never")
    assert raised.value.object == "(exit 3)"


def test_the_picture_shows_every_line_and_shortens_pauses() -> None:
    lines = [Line(0.0, "sleep <9>", True), Line(9.0, "x" * (COLUMNS + 1)), Line(9.1, "next", True)]
    root = ET.fromstring(terminal.svg(lines, "a & b"))
    texts = [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts == ["sleep <9>", "x" * COLUMNS, "x", "next"]
    shown_s = terminal.times(lines)
    assert shown_s[1] - shown_s[0] == pytest.approx(terminal.PAUSE_S_MAX)
    assert root.get("aria-label") == "a & b"
