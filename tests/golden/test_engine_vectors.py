"""Fingerprints and encoded images stay what they are: nodes of different versions and CPUs share them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from medes import native
from tests.golden.make_engine_vectors import VECTORS, contents
from tests.support import memory

GOLDEN = json.loads(VECTORS.read_text())


def test_the_contents_are_those_of_the_vectors() -> None:
    target, base = contents()
    assert hashlib.sha256(target).hexdigest() == GOLDEN["target_sha256"]
    assert hashlib.sha256(base).hexdigest() == GOLDEN["base_sha256"]


@pytest.mark.parametrize("simd", native.simd_levels())
def test_fingerprints(simd: str) -> None:
    prints = native.fingerprint(native.MemoryImage.from_buffer(contents()[1]), 8, simd=simd)
    assert prints.hashes.hex() == GOLDEN["hashes_of_base"]
    assert prints.positions.hex() == GOLDEN["positions_of_base"]


def test_an_old_blob_still_decodes(tmp_path: Path) -> None:
    target, base = contents()
    _, image, bases = memory.encode_against(target, base, tmp_path)
    golden = native.EncodedImage.from_bytes(bytes.fromhex(GOLDEN["encoded"]))
    golden.verify(image, bases)
    for page in range(golden.page_count):
        assert golden.decode(page, bases) == target[page * memory.PAGE :][: memory.PAGE]


def test_the_encoder_writes_the_same_blob(tmp_path: Path) -> None:
    """Ungrouped, and no page of these contents goes through zstd, whose output its versions may change."""
    encoded, _, _ = memory.encode_against(*contents(), tmp_path, group_pages=0)
    assert encoded.stats["pages_compressed"] == 0
    assert encoded.to_bytes().hex() == GOLDEN["encoded"]
