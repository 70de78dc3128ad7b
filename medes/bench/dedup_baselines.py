"""What others save on the same captured images: the paper's scheme, zstd and lz4 per page, KSM.

Each scheme rebuilds what it stored and compares it with the page; a difference raises CorruptError.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medes import native
from medes.errors import CorruptError, UnsupportedError

PAGE = native.PAGE_BYTES
TABLE_BYTES = 16  # per page, as much as the study's own schemes are charged
ZERO = bytes(PAGE)


@dataclass
class Outcome:
    """What one scheme kept of one image or of several. Times are CPU seconds; None: not measured."""

    warm_bytes: int = 0
    kept_bytes: float = 0
    patch_bytes: float = 0
    pages: Counter[str] = field(default_factory=Counter)
    encode_s: float | None = 0.0
    apply_s: float | None = 0.0
    extra: dict[str, Any] = field(default_factory=dict)

    def add(self, other: Outcome) -> None:
        """Adds another image's outcome; a time that one of them lacks is lacking in the sum."""
        self.warm_bytes += other.warm_bytes
        self.kept_bytes += other.kept_bytes
        self.patch_bytes += other.patch_bytes
        self.pages += other.pages
        for name in ("encode_s", "apply_s"):
            mine, theirs = getattr(self, name), getattr(other, name)
            setattr(self, name, None if mine is None or theirs is None else mine + theirs)
        for key, value in other.extra.items():
            self.extra[key] = self.extra.get(key, 0) + value if isinstance(value, int | float) else value

    def store(self, kind: str, size: float) -> None:
        """One page kept as `kind` in `size` bytes and its table entry."""
        self.warm_bytes += PAGE
        self.kept_bytes += size + TABLE_BYTES
        self.patch_bytes += size
        self.pages[kind] += 1


def pages_of(image: native.MemoryImage) -> Iterator[bytes]:
    """The image's pages, read from it in runs of 16 MiB."""
    run = 4096
    for first in range(0, image.page_count, run):
        block = image.pages(first, min(run, image.page_count - first))
        for at in range(0, len(block), PAGE):
            yield block[at : at + PAGE]


def per_page(
    image: native.MemoryImage, compress: Callable[[bytes], bytes], expand: Callable[[bytes], bytes]
) -> Outcome:
    """Every page compressed alone, as zram and zswap do; kept raw where that does not help."""
    outcome = Outcome(encode_s=0.0, apply_s=0.0)
    assert outcome.encode_s is not None and outcome.apply_s is not None
    for page in pages_of(image):
        if page == ZERO:
            outcome.store("zero", 0)
            continue
        t0 = time.process_time()
        packed = compress(page)
        t1 = time.process_time()
        back = expand(packed)
        outcome.apply_s += time.process_time() - t1
        outcome.encode_s += t1 - t0
        if back != page:
            raise CorruptError("a page compressed alone came back different")
        if len(packed) < PAGE:
            outcome.store("compressed", len(packed))
        else:
            outcome.store("raw", PAGE)
    return outcome


def zstd(image: native.MemoryImage) -> Outcome:
    """zstd level 1 per page."""
    try:
        import zstandard
    except ImportError as error:
        raise UnsupportedError(
            "scheme zstd needs the package zstandard", hint="pip install medes[bench]"
        ) from error
    compressor = zstandard.ZstdCompressor(level=1, write_content_size=False, write_checksum=False)
    expander = zstandard.ZstdDecompressor()
    return per_page(
        image, compressor.compress, lambda packed: expander.decompress(packed, max_output_size=PAGE)
    )


def lz4(image: native.MemoryImage) -> Outcome:
    """lz4 blocks per page."""
    try:
        import lz4.block as block
    except ImportError as error:
        raise UnsupportedError("scheme lz4 needs the package lz4", hint="pip install medes[bench]") from error
    return per_page(
        image,
        lambda page: block.compress(page, store_size=False),
        lambda packed: block.decompress(packed, uncompressed_size=PAGE),
    )


def page_digests(image: native.MemoryImage) -> set[bytes]:
    """Digests of all pages, for `ksm`."""
    return {hashlib.blake2b(page, digest_size=16).digest() for page in pages_of(image)}


def ksm(image: native.MemoryImage, known: set[bytes]) -> Outcome:
    """Zero pages and pages equal to one of `known` or to an earlier one: what same-page merging can share."""
    outcome = Outcome(encode_s=None, apply_s=None)
    seen = set(known)
    for page in pages_of(image):
        digest = hashlib.blake2b(page, digest_size=16).digest()
        if page == ZERO:
            outcome.store("zero", 0)
        elif digest in seen:
            outcome.store("identical", 0)
        else:
            seen.add(digest)
            outcome.store("raw", PAGE)
        outcome.kept_bytes -= TABLE_BYTES  # the kernel's own page tables do it
    return outcome


class Paper:
    """The paper's scheme: five 64-byte chunks a page, sampled by value with a rolling window, in a registry; the base
    page that shares most of them; an xdelta3 level 1 patch against that one page.

    Sizes only: the one xdelta3 binding that works here goes through files and spends milliseconds a page on its own
    set-up. So that a run ends, at most `sample` of the pages that have a base page are patched, evenly spread, and the
    mean of their sizes counts for the rest.
    """

    CHUNKS = 5
    MASK, PATTERN = 0x0707, 0x0305  # one window in 64 of random bytes, and no window of zeros

    def __init__(self, sample: int) -> None:
        try:
            import numpy
            import pyxdelta
        except ImportError as error:
            raise UnsupportedError(
                f"scheme paper needs {error.name}", hint="pip install medes[bench,functions]"
            ) from error
        self._numpy, self._xdelta, self._sample = numpy, pyxdelta, sample
        self._registry: dict[bytes, list[tuple[int, int]]] = {}
        self._bases: list[native.MemoryImage] = []

    def add_base(self, image: native.MemoryImage) -> None:
        number = len(self._bases)
        self._bases.append(image)
        for index, page in enumerate(pages_of(image)):
            for chunk in self._chunks(page):
                places = self._registry.setdefault(chunk, [])
                if len(places) < 8:
                    places.append((number, index))

    def encode(self, image: native.MemoryImage) -> Outcome:
        outcome = Outcome(encode_s=None, apply_s=None)
        against: list[tuple[bytes, bytes]] = []
        for page in pages_of(image):
            if page == ZERO:
                outcome.store("zero", 0)
                continue
            votes = Counter(place for chunk in self._chunks(page) for place in self._registry.get(chunk, ()))
            if not votes:
                outcome.store("raw", PAGE)
                continue
            (number, index), _ = votes.most_common(1)[0]
            base = self._bases[number].page(index)
            if base == page:
                outcome.store("identical", 0)
            else:
                against.append((base, page))
        stride = max(1, len(against) // self._sample)
        with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="medes-bench-") as folder:
            sizes = [self._patch(Path(folder), *pair) for pair in against[::stride]]
        for position in range(len(against)):
            size = sizes[min(position // stride, len(sizes) - 1)]
            if size < PAGE:
                outcome.store("patch", size)
            else:
                outcome.store("raw", PAGE)
        outcome.extra = {"pages_patched": len(sizes), "pages_estimated": len(against) - len(sizes)}
        return outcome

    def _chunks(self, page: bytes) -> list[bytes]:
        values = self._numpy.frombuffer(page, dtype=self._numpy.uint8)
        pairs = values[62:-1].astype(self._numpy.uint16) | values[63:].astype(self._numpy.uint16) << 8
        found = self._numpy.flatnonzero((pairs & self.MASK) == self.PATTERN)
        chunks: list[bytes] = []
        end = -64
        for start in found.tolist():
            if start < end + 64 and chunks:
                continue  # chunks do not overlap
            chunks.append(page[start : start + 64])
            end = start
            if len(chunks) == self.CHUNKS:
                break
        return chunks

    def _patch(self, folder: Path, base: bytes, page: bytes) -> int:
        """The patch's size without the two file names that the tool writes into its header."""
        source, target, patch, back = (folder / name for name in "stpb")
        source.write_bytes(base)
        target.write_bytes(page)
        self._xdelta.run(str(source), str(target), str(patch))
        self._xdelta.decode(str(source), str(patch), str(back))
        if back.read_bytes() != page:
            raise CorruptError("an xdelta3 patch came back different")
        packed = patch.read_bytes()
        # magic (3), version, header indicator (4: application header), its length, the header
        names = 1 + packed[5] if packed[4] == 4 else 0
        return len(packed) - names
