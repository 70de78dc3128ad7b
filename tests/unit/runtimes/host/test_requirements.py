"""What functions import and is not installed is named before anything starts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from medes.errors import UnsupportedError
from medes.runtimes import manifest
from medes.runtimes.host import requirements

CODE = """
import json, nosuchthing.part
from alsonot import x
from . import sibling
import vendored
try:
    import optional_thing
except ImportError:
    optional_thing = None
def handler(event, context):
    import only_when_called
"""


@pytest.fixture
def spec(tmp_path: Path) -> manifest.FunctionSpec:
    (tmp_path / "code.py").write_text(CODE)
    (tmp_path / "vendored.py").write_text("")
    (tmp_path / "function.toml").write_text('name = "probe"\nhandler = "code:handler"\nidempotent = true\n')
    return manifest.load(tmp_path)


def test_missing_modules_are_named_with_the_command(spec: manifest.FunctionSpec) -> None:
    assert requirements.missing_modules(spec) == ["alsonot", "nosuchthing"]
    with pytest.raises(UnsupportedError) as caught:
        requirements.check([spec])
    assert str(caught.value) == (
        "functions probe: not installed: alsonot, nosuchthing (pip install alsonot nosuchthing)"
    )


def test_for_the_projects_own_the_extra_is_named(
    spec: manifest.FunctionSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requirements, "bundled_directory", lambda: spec.folder.parent)
    with pytest.raises(UnsupportedError, match=r"pip install 'medes\[functions\]'"):
        requirements.check([spec])


def test_what_cannot_be_read_is_left_to_the_instance(spec: manifest.FunctionSpec) -> None:
    (spec.folder / "code.py").write_text("def (")
    assert requirements.missing_modules(spec) == []
    assert requirements.missing_modules(replace(spec, handler="gone:handler")) == []
    requirements.check(manifest.load_all(manifest.bundled_directory()))
