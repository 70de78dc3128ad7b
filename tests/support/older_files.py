"""Sandbox files as agents of earlier versions have written them."""

from __future__ import annotations

import struct
from pathlib import Path

from medes import native
from medes.agent.store.store_key import KEY_BYTES, KEY_NAME

ENCODED_AT = 64  # of a sandbox file: u64 offset, u64 bytes of the encoded image
VERSION, CHECKS, HEADER_SUM = 8, 48 + 2 * 24, 216  # of an encoded image of version 3 (docs/patch-format.md)


def without_tags(path: Path) -> None:
    """Its pages carry checksums, in an encoded image of version 3. The seal is broken by that."""
    folder = path.parent
    native.set_store_key(str(folder), (folder / KEY_NAME).read_bytes()[:KEY_BYTES])
    data = bytearray(path.read_bytes())
    at, length = struct.unpack_from("<QQ", data, ENCODED_AT)
    blob = data[at : at + length]
    encoded = native.EncodedImage.from_bytes(bytes(blob), str(folder))
    bases = native.BaseSet()
    for slab in folder.glob("base-*.slab"):
        bases.add_local(native.Slab.open(str(slab)))
    offset, size, _ = struct.unpack_from("<QQQ", blob, CHECKS)
    sums = [native.checksum64(encoded.decode(page, bases)) for page in range(encoded.page_count)]
    struct.pack_into(f"<{len(sums)}Q", blob, offset, *sums)
    struct.pack_into("<I", blob, VERSION, 3)
    struct.pack_into("<Q", blob, CHECKS + 16, native.checksum64(bytes(blob[offset : offset + size])))
    struct.pack_into("<Q", blob, HEADER_SUM, native.checksum64(bytes(blob[:HEADER_SUM])))
    data[at : at + length] = blob
    path.write_bytes(data)
