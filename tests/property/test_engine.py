"""Any bytes against any base come back, whatever the shift, the group size and the SIMD level."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import mmh3
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medes import native
from medes.errors import CorruptError, InvalidArgumentError, UnsupportedError
from tests.support import memory

PAGE = native.PAGE_BYTES
WORD = st.one_of(
    st.just(0),
    st.integers(0, 255),
    st.integers(0, memory.MASK),
    st.integers(0, (1 << 24) - 1).map(lambda offset: memory.LIBRARY + offset),
    st.integers(0, (1 << 30) - 1).map(lambda offset: 0xFFFF_8880_0000_0000 + offset),
)


RUN = st.tuples(
    st.sampled_from([1, 7, 64, 127, 128, 129, 255, 256, 257, 511, 512]),
    st.one_of(
        st.lists(WORD, min_size=1, max_size=4),  # repeated
        st.integers(0, 1 << 32),  # seed of noise
    ),
)


def fill(runs: list[tuple[int, list[int] | int]]) -> bytes:
    """Whole pages of the runs, one after the other, then zeros."""
    out: list[int] = []
    for length, content in runs:
        if isinstance(content, int):
            noise = memory.splitmix(content)
            out += [next(noise) for _ in range(length)]
        else:
            out += (content * length)[:length]
    out += [0] * (-len(out) % memory.WORDS)
    return memory.packed(out)


def buffers() -> st.SearchStrategy[bytes]:
    return st.lists(RUN, min_size=1, max_size=12).map(fill)


@settings(max_examples=60, deadline=None)
@given(target=buffers(), base=buffers(), group_pages=st.sampled_from([None, 0, 1, 3, 64]))
def test_any_bytes_against_any_base(target: bytes, base: bytes, group_pages: int | None) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        encoded, image, bases = memory.encode_against(target, base, Path(folder), group_pages=group_pages)
        encoded.verify(image, bases)
        again = native.EncodedImage.from_bytes(encoded.to_bytes())
        page = len(target) // PAGE - 1
        assert again.decode(page, bases) == target[page * PAGE :]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1 << 32), shift=st.integers(0, 255), slide=st.integers(-500, 500))
def test_shifted_and_slid_copies_cost_little(seed: int, shift: int, slide: int) -> None:
    base = memory.program(6, seed)
    moved = memory.other_process(base, slide * 4096, seed + 1, change_one_in=1 << 60)
    target = moved[2 * shift : 2 * shift + 5 * memory.WORDS]
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        encoded, _, _ = memory.encode_against(
            memory.packed(target), memory.packed(base), Path(folder), group_pages=0
        )
        assert encoded.stats["pages_raw"] == 0
        assert encoded.blob_bytes < len(target) * 8 // 4


@settings(max_examples=60, deadline=None)
@given(data=buffers(), k=st.integers(1, native.MAX_SAMPLES))
def test_all_simd_levels_agree(data: bytes, k: int) -> None:
    image = native.MemoryImage.from_buffer(data)
    results = [native.fingerprint(image, k, simd=level) for level in native.simd_levels()]
    for other in results[1:]:
        assert other.hashes == results[0].hashes
        assert other.positions == results[0].positions


@given(data=st.binary(max_size=200), seed=st.integers(0, (1 << 32) - 1))
def test_murmur3_is_mmh3(data: bytes, seed: int) -> None:
    assert native.murmur3_x64_128(data, seed) == mmh3.hash64(data, seed, signed=False)


def test_sample_hashes_are_mmh3_of_the_window() -> None:
    """Without pointers the normalised window is the window."""
    data = random.Random(4).randbytes(PAGE)
    prints = native.fingerprint(native.MemoryImage.from_buffer(data, value_only=False), 8)
    for i, position in enumerate(prints.positions):
        window = data[position * 16 : position * 16 + 64]
        stored = int.from_bytes(prints.hashes[8 * i : 8 * i + 8], "little")
        assert stored == mmh3.hash64(window, signed=False)[0]


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_damaged_blob_never_gives_wrong_bytes(data: st.DataObject) -> None:
    target, base = (
        memory.packed(memory.other_process(memory.program(3, 5), 4096, 6)),
        memory.packed(memory.program(3, 5)),
    )
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        encoded, _, bases = memory.encode_against(target, base, Path(folder))
    blob = bytearray(encoded.to_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        blob[data.draw(st.integers(0, len(blob) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        damaged = native.EncodedImage.from_bytes(bytes(blob))
    except (CorruptError, UnsupportedError):  # its version was hit: no format of ours
        return
    for page in range(damaged.page_count):
        try:
            assert damaged.decode(page, bases) == target[page * PAGE : (page + 1) * PAGE]
        except CorruptError:
            continue


def test_bad_arguments_are_refused() -> None:
    image = native.MemoryImage.from_buffer(bytes(PAGE))
    prints = native.fingerprint(image)
    plan = native.plan_windows(image, prints, native.Locations.empty(1, 8))
    with pytest.raises(InvalidArgumentError):
        native.fingerprint(image, 0)
    with pytest.raises(InvalidArgumentError):
        native.fingerprint(image, simd="sse9")
    with pytest.raises(InvalidArgumentError):
        native.encode(image, plan, native.BaseSet(), codec="unknown")
    with pytest.raises(InvalidArgumentError):
        native.encode(image, plan, native.BaseSet(), group_pages=65)
    with pytest.raises(InvalidArgumentError):
        native.plan_windows(image, prints, native.Locations.empty(2, 8))
    with pytest.raises(UnsupportedError, match="version 0"):
        native.EncodedImage.from_bytes(b"MEDESENC" + bytes(300))
    with pytest.raises(CorruptError):
        native.EncodedImage.from_bytes(b"NOTMEDES" + bytes(300))
