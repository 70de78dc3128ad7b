"""Whether a caller's certificate is still believed: of connections that are older than what this server goes by now.

TLS looks at a certificate once, at the handshake, and a channel may then be open for weeks. So each call asks here, which
costs a look-up, and streams are ended when what is believed has changed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from medes.certs.parties import Role
from medes.errors import CorruptError, UnauthenticatedError

if TYPE_CHECKING:
    from medes.certs.identity import Identity

log = logging.getLogger(__name__)

KNOWN_MAX = 4096
_CERTIFICATE, _CHAIN = "x509_pem_cert", "x509_pem_cert_chain"


class Callers:
    """Of one server. Use from its event loop."""

    def __init__(self, identity: Identity, now_s: Callable[[], float] = time.time) -> None:
        self._identity = identity
        self._now_s = now_s
        self._generation = identity.generation
        self._until_s: dict[bytes, float] = {}  # certificate → when it is believed no more
        self._streams: dict[asyncio.Task[Any], Any] = {}
        self._ended: set[asyncio.Task[Any]] = set()

    def check(self, context: Any) -> None:
        """Raises unauthenticated for a caller whose CA is believed no more, and for a node whose certificate has expired
        (nodes change to new ones while they run)."""
        properties = context.auth_context()
        certificate = next(iter(properties.get(_CERTIFICATE, ())), None)
        if certificate is None:
            return  # a unix socket
        if self._generation != self._identity.generation or len(self._until_s) >= KNOWN_MAX:
            self._generation = self._identity.generation
            self._until_s.clear()
        until_s = self._until_s.get(certificate)
        if until_s is None:
            chain = b"".join(properties.get(_CHAIN, ()))
            until_s = self._until_s[certificate] = self._look(certificate, chain)
        if until_s <= self._now_s():
            raise UnauthenticatedError(
                "the certificate is not believed any more",
                object=context.peer(),
                hint="connect anew, with one of the CA that is in use now",
            )

    def _look(self, certificate: bytes, chain: bytes) -> float:
        from medes.certs.authority import details, is_of

        if not is_of(certificate, chain, self._identity.pem.ca):
            return float("-inf")
        try:
            found = details(certificate, "caller")
        except CorruptError:
            return float("-inf")
        of_node = found.party is not None and found.party.role is Role.NODE
        return found.expires_s if of_node else float("inf")

    @contextlib.contextmanager
    def streaming(self, context: Any) -> Iterator[None]:
        """Around a stream's handler, whose task is cancelled when its caller is believed no more: raises
        unauthenticated then."""
        task = asyncio.current_task()
        assert task is not None
        self._streams[task] = context
        try:
            yield
        except asyncio.CancelledError:
            if task not in self._ended:
                raise
            task.uncancel()
            self.check(context)
            raise
        finally:
            del self._streams[task]
            self._ended.discard(task)

    def look_again(self) -> None:
        """What is believed has changed: ends the streams of those who are not any more."""
        for task, context in list(self._streams.items()):
            try:
                self.check(context)
            except UnauthenticatedError as error:
                log.warning("a stream was ended: %s", error)
                self._ended.add(task)
                task.cancel()
