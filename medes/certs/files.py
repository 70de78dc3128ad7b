"""Certificates written for others: NAME.crt, NAME.key and ca.crt in a folder, taken to the node they are for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from medes.certs.folder import CA_FILE, write_file
from medes.certs.identity import read_pem
from medes.errors import AlreadyExistsError, InvalidArgumentError, IoError

if TYPE_CHECKING:
    from medes.certs.authority import Authority, Details, Pem
    from medes.certs.parties import Party


@dataclass(frozen=True, slots=True)
class Written:
    """Where the three files are."""

    certificate: Path
    private_key: Path
    ca: Path


def issue_files(
    authority: Authority, party: Party, hosts: Sequence[str], *, days: float, folder: Path
) -> Written:
    """Raises already_exists where files of that name are (renew them), io, invalid_argument."""
    pem = authority.issue(party, hosts, days=days)
    written = Written(folder / f"{party.name}.crt", folder / f"{party.name}.key", folder / CA_FILE)
    for path in (written.certificate, written.private_key):
        if path.exists() or path.is_symlink():
            raise AlreadyExistsError("is there already", object=str(path), hint="medes certs renew")
    _write(written, pem)
    return written


def renew_files(authority: Authority, certificate: Path) -> tuple[Written, Details]:
    """The same certificate for as long as before, with a new key (NAME.crt, NAME.key), and in ca.crt what is believed by
    now. The key comes before the certificate: who reads both in between sees that they do not match, and goes on with the
    old pair.

    Raises invalid_argument for a certificate that names no party or of another CA, io.
    """
    from medes.certs.authority import details

    found = details(read_pem(str(certificate), "certificate"), str(certificate))
    if found.party is None:
        raise InvalidArgumentError("names no party: it was not made by medes certs", object=str(certificate))
    if found.issuer not in authority.believed_names:
        raise InvalidArgumentError(f"is of another CA ({found.issuer})", object=str(certificate))
    days = found.days
    hosts = [name for name in found.names if not found.party.role.serves or name != found.party.server_name]
    written = Written(certificate, certificate.with_suffix(".key"), certificate.parent / CA_FILE)
    pem = authority.issue(found.party, hosts, days=days)
    _write(written, pem)
    return written, details(pem.certificate, str(certificate))


def _write(written: Written, pem: Pem) -> None:
    folder = written.certificate.parent
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise IoError(error.strerror or str(error), object=str(folder)) from error
    try:
        write_file(descriptor, written.ca.name, pem.ca, mode=0o644)
        write_file(descriptor, written.private_key.name, pem.private_key)
        write_file(descriptor, written.certificate.name, pem.certificate, mode=0o644)
    finally:
        os.close(descriptor)
