"""Corpora of the fuzz targets as text: native/fuzz/corpus/TARGET.hex has one input a line, in hex.

python tests/support/fuzz_corpus.py unpack FILE FOLDER    one file an input
python tests/support/fuzz_corpus.py pack FOLDER FILE      the way back, shortest first
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path


def unpack(file: Path, folder: Path) -> int:
    """Writes the inputs of a corpus into a folder; returns how many there are."""
    folder.mkdir(parents=True, exist_ok=True)
    inputs = [bytes.fromhex(line) for line in file.read_text().splitlines()]
    for data in inputs:
        (folder / hashlib.sha1(data).hexdigest()).write_bytes(data)
    return len(inputs)


def pack(folder: Path, file: Path) -> int:
    """Writes a folder's inputs as a corpus; returns how many there are."""
    inputs = sorted({p.read_bytes() for p in folder.iterdir()}, key=lambda data: (len(data), data))
    file.write_text("".join(data.hex() + "\n" for data in inputs))
    return len(inputs)


if __name__ == "__main__":
    do, source, target = sys.argv[1:]
    print({"unpack": unpack, "pack": pack}[do](Path(source), Path(target)))
