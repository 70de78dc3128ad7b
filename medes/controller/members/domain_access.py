"""Which dedup domains a node hears of: those in which it has sandboxes, within what its certificate admits.

A node that asks about any other is answered as if nothing were there, so that look-ups tell nothing about tenants whose
functions run elsewhere. Thread-safe.
"""

from __future__ import annotations

import logging
import threading

from medes.certs.parties import Party
from medes.controller.members.directory import Directory
from medes.errors import PermissionDeniedError
from medes.types import SandboxRecord

log = logging.getLogger(__name__)


class DomainAccess:
    """`party` is None for callers that show no certificate: on a unix socket, or with `insecure_plaintext`."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._withheld = 0

    @property
    def withheld(self) -> int:
        """How many answers, and records of sandboxes, were left out."""
        with self._lock:
            return self._withheld

    def _count(self, n: int = 1) -> None:
        with self._lock:
            self._withheld += n

    def hears(self, party: Party | None, domain: str) -> bool:
        """Whether the node may be told what there is in a domain; counts where not."""
        if party is None or (party.admits(domain) and self._directory.has_sandboxes(party.name, domain)):
            return True
        self._count()
        log.warning("%s asked about domain %s, which it does not host", party, domain)
        return False

    def require(self, party: Party | None, domain: str) -> None:
        """Raises permission_denied where its certificate keeps the node out of a domain."""
        if party is not None and not party.admits(domain):
            self._count()
            raise PermissionDeniedError(
                f"the certificate does not admit domain {domain}", object=f"node {party.name}"
            )

    def admitted(self, party: Party | None, records: tuple[SandboxRecord, ...]) -> tuple[SandboxRecord, ...]:
        """The sandboxes whose domains its certificate admits: others would open their domains to the node."""
        if party is None or party.domains is None:
            return records
        kept = tuple(r for r in records if party.admits(r.domain))
        if len(kept) < len(records):
            self._count(len(records) - len(kept))
            log.warning("%s announces sandboxes of domains that its certificate does not admit", party)
        return kept
