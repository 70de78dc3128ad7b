"""Sandbox files: what goes in comes out, damage of any section is refused, nothing is overwritten."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from medes import errors, native

PAGE = native.PAGE_BYTES
K = 8


@pytest.fixture
def encoded(tmp_path: Path) -> tuple[native.MemoryImage, native.EncodedImage]:
    """An image of 12 pages encoded against a base that holds most of them."""
    source = random.Random(1)
    pages = [source.randbytes(PAGE) for _ in range(10)] + [bytes(PAGE), source.randbytes(PAGE)]
    base = native.MemoryImage.from_buffer(b"".join(pages[:10]))
    slab = native.Slab.create(str(tmp_path / "base.slab"), 42, base)
    index = native.FingerprintIndex()
    prints = slab.fingerprint(K)
    index.insert(42, prints.hashes, prints.positions, K)
    image = native.MemoryImage.from_buffer(b"".join(pages))
    own = native.fingerprint(image, K)
    plan = native.plan_windows(image, own, index.lookup(own.hashes, K))
    bases = native.BaseSet()
    bases.add_local(slab)
    return image, native.encode(image, plan, bases)


Encoded = tuple[native.MemoryImage, native.EncodedImage]


def create(path: Path, encoded: Encoded, meta: bytes = b'{"id":"s1"}') -> native.SandboxFile:
    return native.SandboxFile.create(str(path), meta, *encoded)


def test_what_was_written_is_read_back(tmp_path: Path, encoded: Encoded) -> None:
    path = tmp_path / "sandbox-1.medes"
    made = create(path, encoded)
    opened = native.SandboxFile.open(str(path))
    for file in (made, opened):
        assert file.meta == b'{"id":"s1"}'
        assert file.base_ids == [42]
        assert file.page_count == 12
        assert file.stats == encoded[1].stats
        assert file.page_state_counts == {"resident": 12, "evicting": 0, "evicted": 0, "restored": 0}
        assert file.file_bytes == path.stat().st_size
    assert path.stat().st_mode & 0o777 == 0o600
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base.slab", "sandbox-1.medes"]


def test_an_existing_file_is_not_replaced(tmp_path: Path, encoded: Encoded) -> None:
    path = tmp_path / "s.medes"
    create(path, encoded, b"first")
    with pytest.raises(errors.AlreadyExistsError):
        create(path, encoded, b"second")
    assert native.SandboxFile.open(str(path)).meta == b"first"


def test_unlink_is_idempotent_and_open_then_fails(tmp_path: Path, encoded: Encoded) -> None:
    file = create(tmp_path / "s.medes", encoded)
    file.unlink()
    file.unlink()
    with pytest.raises(errors.NotFoundError):
        native.SandboxFile.open(str(tmp_path / "s.medes"))


def test_every_damaged_byte_of_header_meta_and_layout_is_noticed(tmp_path: Path, encoded: Encoded) -> None:
    path = tmp_path / "s.medes"
    create(path, encoded)
    good = path.read_bytes()
    places = [*range(112), *range(4096, 4096 + 11), *range(4160, 4160 + 40)]
    for place in places:
        path.write_bytes(good[:place] + bytes([good[place] ^ 0x10]) + good[place + 1 :])
        # Another version is somebody else's file, for all that can be told. The layout's lies under a checksum.
        other_version = 8 <= place < 12
        with pytest.raises(errors.UnsupportedError if other_version else errors.CorruptError):
            native.SandboxFile.open(str(path))
    path.write_bytes(good)
    assert native.SandboxFile.open(str(path)).page_count == 12


@pytest.mark.parametrize("length", [0, 100, 4096, 8192])
def test_a_truncated_file_is_refused(tmp_path: Path, encoded: Encoded, length: int) -> None:
    path = tmp_path / "s.medes"
    create(path, encoded)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(errors.CorruptError):
        native.SandboxFile.open(str(path))


def test_every_damaged_byte_of_the_encoded_images_header_is_noticed(tmp_path: Path, encoded: Encoded) -> None:
    path = tmp_path / "s.medes"
    create(path, encoded)
    good = path.read_bytes()
    start = good.index(encoded[1].to_bytes()[:64])
    for at in range(224):
        path.write_bytes(good[: start + at] + bytes([good[start + at] ^ 0xFF]) + good[start + at + 1 :])
        with pytest.raises(errors.UnsupportedError if 8 <= at < 12 else errors.CorruptError):
            native.SandboxFile.open(str(path))
