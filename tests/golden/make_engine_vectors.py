"""Writes engine_vectors.json. Run it only when a format version changes: `python -m tests.golden.make_engine_vectors`."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path

from medes import native
from tests.support import memory

VECTORS = Path(__file__).with_name("engine_vectors.json")


def contents() -> tuple[bytes, bytes]:
    """(target, base): four pages that slid and changed a little, one of them shifted by 48 bytes, one zero."""
    base = memory.program(5, seed=1)
    target = memory.other_process(base, slide=0x34000, seed=2, change_one_in=60)
    target[: memory.WORDS] = base[6 : 6 + memory.WORDS]
    target[memory.WORDS : 2 * memory.WORDS] = [0] * memory.WORDS
    return memory.packed(target), memory.packed(base)


def vectors(folder: Path) -> dict[str, object]:
    target, base = contents()
    prints = native.fingerprint(native.MemoryImage.from_buffer(base), 8, simd="scalar")
    encoded, _, _ = memory.encode_against(target, base, folder, group_pages=0)
    return {
        "target_sha256": hashlib.sha256(target).hexdigest(),
        "base_sha256": hashlib.sha256(base).hexdigest(),
        "hashes_of_base": prints.hashes.hex(),
        "positions_of_base": prints.positions.hex(),
        "encoded": encoded.to_bytes().hex(),
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(dir="/dev/shm") as temporary:
        VECTORS.write_text(json.dumps(vectors(Path(temporary)), indent=1) + "\n")
