"""The key that the files of shm_dir are sealed with: what anybody else has put or changed there is corrupt.

It lies in `store.key` of state_dir and of shm_dir, each readable by the agent's user alone: either folder may be lost (an
empty state_dir is enough to rebuild from, a reboot empties shm_dir). Where the two differ, shm_dir's is the one that
the files there were sealed with. A file without a seal is taken only when a key is made, from the agents before that
had none: they are sealed then.

File: 32 bytes of key, one byte: 1 while such files are being sealed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from pathlib import Path

from medes import native
from medes.errors import CorruptError, MedesError, NotFoundError
from medes.folders import read_private, write_private

log = logging.getLogger(__name__)

KEY_NAME = "store.key"
KEY_BYTES = 32
_SEALING, _SEALED = b"\x01", b"\x00"


def use_store_key(state_dir: Path, shm_dir: Path) -> list[Path]:
    """Finds or makes the key of both folders and lets the core use it. Call it under the folders' locks, before anything in
    them is opened. Returns the files made that nothing depends on yet. Blocks. Raises io, permission_denied."""
    places = (shm_dir / KEY_NAME, state_dir / KEY_NAME)
    found = [_read(path) for path in places]
    known = next((f for f in found if f), b"")
    if found[0] and found[1] and found[0][:KEY_BYTES] != found[1][:KEY_BYTES]:
        log.warning("%s and %s differ: the files of shm_dir are checked with its own", *places)
    # Not of a Chance: nobody may guess it.
    key = known[:KEY_BYTES] or secrets.token_bytes(KEY_BYTES)
    sealing = not known or _SEALING in (f[KEY_BYTES:] for f in found)
    if sealing:
        # Killed from here on, the next start goes on with the same key.
        _write(places, key + _SEALING)
        native.set_store_key(str(shm_dir), key)
        for path in _files(shm_dir):
            try:
                native.seal_existing(str(path))
            except MedesError as error:  # recovery tells what it is
                log.warning("not sealed: %s", error)
    if sealing or found[0] != found[1]:
        _write(places, key + _SEALED)
    native.set_store_key(str(shm_dir), key)
    new = not known and bool(_files(shm_dir))
    return [] if new else [path for path, before in zip(places, found, strict=True) if not before]


def forget_store_key(state_dir: Path, shm_dir: Path) -> None:
    """Nothing is kept any more that it was for."""
    for folder in (shm_dir, state_dir):
        with contextlib.suppress(OSError):
            (folder / KEY_NAME).unlink(missing_ok=True)


def _read(path: Path) -> bytes:
    """Empty when there is none, or none that is whole: the other folder's counts then."""
    try:
        data = read_private(path, KEY_BYTES + 1)
    except NotFoundError:
        return b""
    except CorruptError as error:
        log.warning("%s", error)
        return b""
    if len(data) != KEY_BYTES + 1:
        log.warning("%s: %d bytes are no key", path, len(data))
        return b""
    return data


def _write(places: tuple[Path, Path], data: bytes) -> None:
    """Raises what `write_private` does, unless one of them could be written: a full disk must not keep an agent from its
    sandboxes."""
    failed: list[MedesError] = []
    for path in places:
        try:
            write_private(path, data)
        except (MedesError, OSError) as error:
            log.warning("the store's key is not kept in %s: %s", path, error)
            if isinstance(error, MedesError):
                failed.append(error)
    if len(failed) == len(places):
        raise failed[0]


def _files(folder: Path) -> list[Path]:
    return [
        Path(entry.path)
        for entry in os.scandir(folder)
        if entry.is_file(follow_symlinks=False) and entry.name.startswith(("base-", "sandbox-"))
    ]
