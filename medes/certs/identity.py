"""What a daemon or client shows of itself and verifies others with, kept fresh while it runs.

An identity comes from PEM files, which are read again when they change, or is issued from the cluster folder, anew
before it expires. Whoever uses one asks for `pem` at each handshake, or watches `generation`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from medes.certs.folder import load_authority, marks
from medes.certs.parties import Party
from medes.errors import InvalidArgumentError, IoError, MedesError
from medes.limits import TLS_FILE_BYTES_MAX
from medes.rpc.tls import TlsFiles

if TYPE_CHECKING:
    from medes.certs.authority import Authority, Pem

log = logging.getLogger(__name__)

REFRESH_S = 15.0
SET_BACK_S = 1800.0  # certificates are good from an hour before their issue on
ISSUED_DAYS = 7.0
RENEW_AT = 0.5  # of the lifetime is left
WARN_DAYS = 14.0
WARN_EVERY_S = 86400.0


class Identity(Protocol):
    """`generation` grows with each change of `pem`."""

    generation: int
    expires_s: float
    party: Party | None

    @property
    def pem(self) -> Pem: ...

    def refresh(self) -> bool:
        """Reads or issues anew where it is time; True when `pem` changed. Never raises; blocks for a moment."""
        ...


class FileIdentity:
    """From PEM files. What does not fit together (one file is written after another) is not taken over until it does.

    Thread-safe. Raises io and invalid_argument when it is made from files that are no use.
    """

    def __init__(self, files: TlsFiles) -> None:
        files.check()
        self._files = files
        self._lock = threading.Lock()
        self._seen: object = None
        self._warned = ""
        self.generation = 0
        self.expires_s = 0.0
        self.party: Party | None = None
        self._pem = self._read()
        self._take(self._pem)

    @property
    def pem(self) -> Pem:
        return self._pem

    def refresh(self) -> bool:
        with self._lock:
            try:
                if self._seen == self._marks():
                    return False
                pem = self._read()
                if pem == self._pem:
                    return False
                self._take(pem)
            except MedesError as error:
                if self._warned != str(error):
                    log.warning("TLS files changed but are not used: %s", error)
                self._warned = str(error)
                self._seen = None
                return False
            self._warned = ""
            self.generation += 1
            log.info("TLS files were read anew", extra={"certificate": self._files.certificate})
            return True

    def _take(self, pem: Pem) -> None:
        from medes.certs.authority import check_pem, details

        check_pem(pem, self._files.certificate, self._files.private_key, self._files.ca)
        found = details(pem.certificate, self._files.certificate)
        self.party, self.expires_s, self._pem = found.party, found.expires_s, pem

    def _marks(self) -> tuple[tuple[int, int, int], ...]:
        """What changes when a file is replaced or written to."""
        marks = []
        for path in (self._files.certificate, self._files.private_key, self._files.ca):
            try:
                found = Path(path).stat()
            except OSError as error:
                raise IoError(error.strerror or str(error), object=path) from error
            marks.append((found.st_ino, found.st_mtime_ns, found.st_size))
        return tuple(marks)

    def _read(self) -> Pem:
        from medes.certs.authority import Pem

        self._seen = self._marks()
        files = self._files
        return Pem(
            read_pem(files.certificate, "certificate"),
            read_pem(files.private_key, "private key"),
            read_pem(files.ca, "CA certificate"),
        )


class IssuedIdentity:
    """Issued to itself from the CA of the cluster folder: the key is never written anywhere. Thread-safe."""

    def __init__(
        self,
        authority: Authority,
        party: Party,
        hosts: Iterable[str] = (),
        *,
        days: float = ISSUED_DAYS,
        now_s: Callable[[], float] = time.time,
        folder: Path | None = None,
    ) -> None:
        """`folder`: where the CA is from, and another may come."""
        self._authority = authority
        self._folder = folder
        self._seen = self._marks()
        self._warned = ""
        self._hosts = tuple(hosts)
        self._days = days
        self._now_s = now_s
        self._lock = threading.Lock()
        self.party: Party | None = party
        self._party = party
        self.generation = 0
        self._issue()

    @property
    def pem(self) -> Pem:
        return self._pem

    def _issue(self) -> None:
        self._pem = self._authority.issue(self._party, self._hosts, days=self._days)
        self._issued_s = self._now_s()
        self.expires_s = min(self._issued_s + self._days * 86400, self._authority.expires_s)

    def refresh(self) -> bool:
        with self._lock:
            # Issued by a clock that was set back since, it is good for nobody until that time comes again.
            other = self._another_authority() or self._now_s() < self._issued_s - SET_BACK_S
            if not other and self.expires_s - self._now_s() > RENEW_AT * self._days * 86400:
                return False
            if not other and self.expires_s >= self._authority.expires_s:
                return False  # with the CA ends what it signs
            self._issue()
            self.generation += 1
            log.info("certificate renewed", extra={"party": str(self._party), "ca": self._authority.name})
            return True

    def _marks(self) -> object:
        return marks(self._folder) if self._folder is not None else None

    def _another_authority(self) -> bool:
        """Whether the folder holds another CA, or has others believed; it is used from here on."""
        try:
            seen = self._marks()
            if self._folder is None or seen == self._seen:
                return False
            found = load_authority(self._folder)
        except MedesError as error:
            if self._warned != str(error):
                log.warning("the cluster's CA changed but is not used: %s", error)
            self._warned = str(error)
            return False
        self._seen, self._warned = seen, ""
        before = self._authority
        self._authority = found
        return (found.pem, found.believed) != (before.pem, before.believed)


class ExpiryWatch:
    """Says in the log, once a day, that a certificate which does not renew itself is about to expire."""

    def __init__(self, now_s: Callable[[], float] = time.time) -> None:
        self._now_s = now_s
        self._said_s = float("-inf")

    def look(self, identity: Identity) -> None:
        now_s = self._now_s()
        left_days = (identity.expires_s - now_s) / 86400
        limit_days = WARN_DAYS
        if isinstance(identity, IssuedIdentity):
            limit_days = min(WARN_DAYS, RENEW_AT * ISSUED_DAYS - 1)  # it should have been renewed a day ago
        if left_days > limit_days or now_s - self._said_s < WARN_EVERY_S:
            return
        self._said_s = now_s
        if left_days <= 0:
            log.error("the TLS certificate has expired: nobody takes new connections with it; renew it")
        else:
            log.warning("the TLS certificate expires in %.1f days: renew it (medes certs renew)", left_days)


def read_pem(path: str, what: str) -> bytes:
    """A PEM file, bounded. Raises io, invalid_argument."""
    try:
        with Path(path).open("rb") as file:
            data = file.read(TLS_FILE_BYTES_MAX + 1)
    except OSError as error:
        raise IoError(f"cannot read the {what}: {error.strerror}", object=path) from error
    if len(data) > TLS_FILE_BYTES_MAX or b"-----BEGIN" not in data:
        raise InvalidArgumentError(f"the {what} is not a PEM file", object=path)
    return data
