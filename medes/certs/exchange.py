"""A new CA for a cluster that runs: first everybody believes it as well (`prepare`), then it signs (`switch`), then the old
one is believed no more (`retire`). Each step may be repeated; between two of them daemons need time to look."""

from __future__ import annotations

import os
import time
from pathlib import Path

from medes.certs.authority import Authority
from medes.certs.folder import (
    AUTHORITY_FILE,
    CA_FILE,
    NEXT_FILE,
    load_authority,
    load_next,
    opened,
    write_file,
)
from medes.certs.identity import REFRESH_S
from medes.errors import BusyError, NotFoundError, WrongStateError

LOOKED_S = 2 * REFRESH_S  # after which every daemon of this machine has looked at the folder


def prepare(folder: Path) -> Authority:
    """Makes the next CA and adds it to what is believed. Raises not_found, io, permission_denied, corrupt."""
    current = load_authority(folder)
    with opened(folder) as descriptor:
        try:
            coming = load_next(folder)
        except NotFoundError:
            coming = Authority.create()
            write_file(descriptor, NEXT_FILE, coming.pem)
        both = current.certificate_pem + coming.certificate_pem
        if current.believed != both:
            write_file(descriptor, CA_FILE, both)
    return coming


def switch(folder: Path, *, at_once: bool = False) -> Authority:
    """The next CA signs from now on. Raises wrong_state without one, busy where not every daemon may have looked yet."""
    with opened(folder) as descriptor:
        try:
            coming = load_next(folder)
        except NotFoundError as error:
            raise WrongStateError("no next CA", object=str(folder), hint="medes certs ca prepare") from error
        if coming.certificate_pem not in load_authority(folder).believed:
            raise WrongStateError(
                "the next CA is not believed yet", object=str(folder), hint="medes certs ca prepare"
            )
        _require_looked(folder, at_once)
        os.rename(NEXT_FILE, AUTHORITY_FILE, src_dir_fd=descriptor, dst_dir_fd=descriptor)
        os.utime(CA_FILE, dir_fd=descriptor)  # when the step was taken
        os.fsync(descriptor)
    return coming


def retire(folder: Path, *, at_once: bool = False) -> Authority:
    """Nothing but the CA that signs is believed. Raises wrong_state before the switch, busy."""
    current = load_authority(folder)
    with opened(folder) as descriptor:
        if (folder / NEXT_FILE).exists():
            raise WrongStateError(
                "the next CA does not sign yet", object=str(folder), hint="medes certs ca switch"
            )
        if current.believed != current.certificate_pem:
            _require_looked(folder, at_once)
            write_file(descriptor, CA_FILE, current.certificate_pem)
    return load_authority(folder)


def _require_looked(folder: Path, at_once: bool) -> None:
    age_s = time.time() - (folder / CA_FILE).stat().st_mtime
    if not at_once and 0 <= age_s < LOOKED_S:
        raise BusyError(
            f"daemons may not have seen the step before: wait {LOOKED_S - age_s:.0f} s", object=str(folder)
        )
