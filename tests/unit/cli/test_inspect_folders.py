"""medes inspect on real slabs, sandbox files and journals, whole and damaged."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from medes import native
from medes.agent.journal.journal import encode_line
from medes.cli.main import run
from medes.errors import CorruptError, NotFoundError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A base of 40 pages, a sandbox file that is dedup'd against it, and a journal."""
    pages = random.Random(1).randbytes(40 * 4096)
    base_image = native.MemoryImage.from_buffer(pages)
    slab = native.Slab.create(str(tmp_path / "base-7.slab"), 7, base_image)
    image = native.MemoryImage.from_buffer(pages[: 20 * 4096] + bytes(4096))
    prints = native.fingerprint(image)
    index = native.FingerprintIndex()
    known = slab.fingerprint()
    index.insert(7, known.hashes, known.positions, 8)
    plan = native.plan_windows(image, prints, index.lookup(prints.hashes, 8))
    bases = native.BaseSet()
    bases.add_local(slab)
    meta = json.dumps({"spec": {"sandbox_id": "s1", "function": "f"}}).encode()
    native.SandboxFile.create(
        str(tmp_path / "sandbox-s1.medes"), meta, image, native.encode(image, plan, bases)
    )
    lines = [
        encode_line({"t": "sandbox"}),
        encode_line({"t": "warm"}),
        b"0123456789abcdef {}\n",
        b"torn",
    ]
    (tmp_path / "journal").write_bytes(b"".join(lines))
    return tmp_path


def inspect(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[dict[str, Any]]]:
    code = run(["inspect", "--json", *arguments])
    return code, json.loads(capsys.readouterr().out or "[]")


def test_a_folder_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--json"]):
        assert run(["inspect", *arguments, str(tmp_path)]) == NotFoundError.exit_code
        captured = capsys.readouterr()
        assert captured.out == ""
        assert f"{tmp_path}: no slab, sandbox file or journal" in captured.err


def test_a_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, rows = inspect(capsys, "--verify", str(folder))
    by_kind = {row["kind"]: row for row in rows}
    assert (code, len(rows)) == (0, 3)
    slab, sandbox, journal = by_kind["slab"], by_kind["sandbox file"], by_kind["journal"]
    assert (slab["base_id"], slab["pages"], slab["verified"]) == ("0x7", 40, True)
    assert (sandbox["meta"]["spec"]["sandbox_id"], sandbox["pages"]) == ("s1", 21)
    assert ([base["base_id"] for base in sandbox["bases"]], sandbox["verified"]) == (["0x7"], True)
    assert sandbox["pages_by_kind"]["zero"] == 1
    assert (journal["records"], journal["damaged_lines"]) == ({"sandbox": 1, "warm": 1}, 2)
    assert run(["inspect", "--verify", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "s1 of f, 21 pages" in out and "1 bases, verified" in out


def test_one_file_in_full(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", "--pages", str(folder / "sandbox-s1.medes")]) == 0
    out = capsys.readouterr().out
    assert "runs:" in out and "kind zero" in out
    sandbox = native.SandboxFile.open(str(folder / "sandbox-s1.medes"))
    code, rows = inspect(capsys, "--pages", str(folder / "sandbox-s1.medes"))
    assert code == 0
    assert sum(r["count"] for r in rows[0]["runs"]) == sandbox.page_count


def test_a_sandbox_without_its_base_cannot_be_verified(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "base-7.slab").unlink()
    code, rows = inspect(capsys, "--verify", str(folder / "sandbox-s1.medes"))
    assert (code, rows[0]["verified"], rows[0]["not_verified"]) == (
        0,
        None,
        "1 of its bases are not in this folder",
    )


@pytest.mark.parametrize("name", ["base-7.slab", "sandbox-s1.medes"])
def test_damage_is_found(folder: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    path = folder / name
    data = bytearray(path.read_bytes())
    data[:64] = bytes(64)
    path.write_bytes(data)
    code, rows = inspect(capsys, str(path))
    assert code == CorruptError.exit_code
    assert "error" in rows[0]
    assert path.read_bytes() == data


def test_a_flipped_bit_in_a_page_is_found_by_verify(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "base-7.slab"
    data = bytearray(path.read_bytes())
    at = data.find(random.Random(1).randbytes(4096)[:64])
    data[at] ^= 1
    path.write_bytes(data)
    assert inspect(capsys, "--verify", str(path))[0] == CorruptError.exit_code


def test_what_is_not_there_or_not_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(tmp_path / "none")]) == NotFoundError.exit_code
    (tmp_path / "notes.txt").write_text("hello")
    code, rows = inspect(capsys, str(tmp_path / "notes.txt"))
    assert (code, rows[0]["kind"]) == (CorruptError.exit_code, "unknown")


def test_page_tags_are_checked_where_the_stores_key_lies_beside_the_files(
    tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    key = bytes(range(32))
    pages = random.Random(1).randbytes(20 * 4096)
    image = native.MemoryImage.from_buffer(pages)
    keyed, elsewhere = (tmp_path_factory.mktemp(name) for name in ("keyed", "elsewhere"))
    native.set_store_key(str(keyed), key)
    bases = native.BaseSet()
    bases.add_local(native.Slab.create(str(keyed / "base-7.slab"), 7, image))
    prints = native.fingerprint(image)
    plan = native.plan_windows(image, prints, native.FingerprintIndex().lookup(prints.hashes, 8))
    encoded = native.encode(image, plan, bases, folder=str(keyed))
    path = keyed / "sandbox-s1.medes"
    native.SandboxFile.create(str(path), b"{}", image, encoded)
    copy = elsewhere / path.name
    copy.write_bytes(path.read_bytes())
    code, rows = inspect(capsys, "--verify", str(copy))
    assert (code, rows[0]["verified"], "store's key" in rows[0]["not_verified"]) == (0, None, True)
    (elsewhere / "store.key").write_bytes(key + b"\0")
    code, rows = inspect(capsys, "--verify", str(copy))
    assert (code, rows[0]["verified"]) == (0, True)
    (elsewhere / "store.key").write_bytes(key[::-1] + b"\0")
    code, rows = inspect(capsys, "--verify", str(copy))
    assert code == CorruptError.exit_code and "another key" in rows[0]["error"]
