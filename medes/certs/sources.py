"""Which identity a daemon or a client uses: the files it is given, or what the cluster folder issues to it."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path

from medes.certs.folder import VARIABLE, cluster_folder, find_authority, load_authority
from medes.certs.identity import REFRESH_S, ExpiryWatch, FileIdentity, Identity, IssuedIdentity
from medes.certs.parties import Party, Role
from medes.errors import InvalidArgumentError, MedesError, UnauthenticatedError, UnsupportedError
from medes.rpc.tls import Plaintext, TlsFiles

log = logging.getLogger(__name__)


TlsSource = TlsFiles | Identity | Plaintext | None
CLIENT_DAYS = 1.0


def daemon_identity(files: TlsFiles, folder: Path, party: Party, hosts: Iterable[str] = ()) -> Identity:
    """Of a daemon: from its files, else from the cluster folder, whose CA is made if this is the first. Blocks.

    Raises invalid_argument for a certificate that is for somebody else, permission_denied, io, corrupt.
    """
    if files.enabled:
        identity = FileIdentity(files)
        found = identity.party
        # Of a controller the role is what counts: there may be several.
        if (
            found is None
            or found.role is not party.role
            or (party.role is Role.NODE and found.name != party.name)
        ):
            raise InvalidArgumentError(
                f"the certificate is for {found or 'no party'}, this is {party}",
                object=files.certificate,
                hint=f"medes certs issue {party.name} --role {party.role.value}",
            )
        return identity
    # A host name may be one that no certificate can hold; who checks names checks the party's.
    own = [socket.gethostname()] if socket.gethostname().isascii() else []
    wanted = [h for h in (*hosts, "localhost", "127.0.0.1", "::1", *own) if h not in ("", "0.0.0.0", "::")]
    return IssuedIdentity(find_authority(folder), party, wanted, folder=folder)


def client_identity(source: TlsSource, role: Role) -> Identity | None:
    """Of a client over TCP: what it is given, else issued from the cluster folder. None: plaintext. Blocks.

    Raises unauthenticated where there is nothing to show, and what files and folder raise.
    """
    if isinstance(source, Plaintext):
        return None
    if find_spec("cryptography") is None:
        raise UnsupportedError(
            "certificates need the package cryptography", object="TLS", hint="pip install medes-client[tls]"
        )
    if isinstance(source, TlsFiles):
        if source.enabled:
            return FileIdentity(source)
        source = None
    if source is not None:
        return source
    folder = cluster_folder()
    try:
        authority = load_authority(folder)
    except MedesError as error:
        raise UnauthenticatedError(
            f"no certificate to show: {error.message}",
            object=error.object,
            hint=f"run as root, set {VARIABLE}, or name TLS files (medes certs issue NAME --role {role.value})",
        ) from error
    return IssuedIdentity(authority, Party(role, f"local-{os.getpid()}"), days=CLIENT_DAYS)


def warn_of_plaintext(who: str) -> None:
    """Said at every start: nothing else may show that a laboratory's setting went into production."""
    log.error(
        "INSECURE: insecure_plaintext is set: %s serves and believes whoever reaches its TCP ports, and sends memory "
        "of sandboxes in clear; see docs/threat-model.md",
        who,
    )


async def keep_fresh(identity: Identity, changed: Callable[[Identity], None] = lambda identity: None) -> None:
    """Reads or issues certificates anew in time, tells `changed`, and warns before one expires; until cancelled."""
    watch = ExpiryWatch()
    while True:
        try:
            if identity.refresh():
                changed(identity)
            watch.look(identity)
        except Exception:  # the certificate in use is still good
            log.exception("renewing certificates")
        await asyncio.sleep(REFRESH_S)
