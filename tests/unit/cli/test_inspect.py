"""medes inspect on each kind of file, sound and damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medes import native
from medes.cli.inspect import describe
from medes.cli.main import run
from medes.errors import CorruptError, InvalidArgumentError
from tests.support import memory


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    base = memory.program(4, 1)
    target = memory.packed(memory.other_process(base, 0x3000, 2))
    encoded, image, _ = memory.encode_against(target, memory.packed(base), tmp_path)
    paths = {name: tmp_path / name for name in ("a.slab", "a.medes", "a.encoded")}
    native.Slab.create(str(paths["a.slab"]), 0x1234, image)
    native.SandboxFile.create(str(paths["a.medes"]), b'{"function": "f"}', image, encoded)
    paths["a.encoded"].write_bytes(encoded.to_bytes())
    return paths


def test_every_kind_is_recognised(files: dict[str, Path]) -> None:
    slab = describe(files["a.slab"], verify=True)
    assert (slab["kind"], slab["base_id"], slab["pages"]) == ("slab", "0x1234", 4)
    assert slab["verified"] is True
    blob = describe(files["a.encoded"], pages=True)
    assert blob["kind"] == "encoded image"
    assert sum(blob["pages_by_kind"].values()) == blob["pages"] == 4
    assert sum(run["count"] for run in blob["runs"]) == 4
    assert blob["bases"][0]["base_id"] == "0x7"
    sandbox = describe(files["a.medes"])
    assert sandbox["kind"] == "sandbox file"
    assert sandbox["meta"] == {"function": "f"}
    assert sandbox["encoded_bytes"] == blob["encoded_bytes"]


def test_text_and_json(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(files["a.encoded"])]) == 0
    assert "encoded image" in capsys.readouterr().out
    assert run(["inspect", "--json", str(files["a.medes"])]) == 0
    assert json.loads(capsys.readouterr().out)[0]["pages"] == 4


def test_damage_and_other_files(files: dict[str, Path], tmp_path: Path) -> None:
    damaged = bytearray(files["a.encoded"].read_bytes())
    damaged[230] ^= 1
    other = tmp_path / "b.encoded"
    other.write_bytes(damaged)
    with pytest.raises(CorruptError):
        describe(other)
    assert run(["inspect", str(other)]) == CorruptError.exit_code
    other.write_text("nothing of ours, but long enough for a header" * 200)
    with pytest.raises(InvalidArgumentError):
        describe(other)
