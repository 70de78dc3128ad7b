"""Who calls: by the certificate that TLS has verified, and what its role may call."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from medes.certs.parties import Party, Role, party_of
from medes.errors import PermissionDeniedError, UnauthenticatedError

log = logging.getLogger(__name__)

# Raises when the caller of a method ("/package.Service/Method") may not; gets the call's context.
Access = Callable[[str, Any], None]
WARN_EVERY_S = 10.0


def caller(context: Any) -> Party | None:
    """The party whose certificate came with the call. None where there is none to show: on a unix socket, whose mode
    says who may connect, and with `insecure_plaintext`. Raises unauthenticated for a certificate of nobody."""
    properties = context.auth_context()
    if b"ssl" not in properties.get("transport_security_type", ()):
        return None
    uris = [v.decode("utf-8", "replace") for v in properties.get("peer_uri", ())]
    party = party_of(uris)
    if party is None:
        raise UnauthenticatedError(
            "the certificate is of the CA but names no party",
            object=", ".join(uris) or "no URI",
            hint="it needs the URI medes://role/name; see medes certs",
        )
    return party


def require_node(context: Any, node_id: str) -> Party | None:
    """The calling node. Raises permission_denied when its certificate is for another one: a node speaks for itself."""
    party = caller(context)
    if party is not None and (party.role is not Role.NODE or party.name != node_id):
        raise PermissionDeniedError(
            f"the caller's certificate is for another: {party}", object=f"node {node_id}"
        )
    return party


class RoleAccess:
    """Admits a method's roles; methods of other services (health, reflection) are for every party."""

    def __init__(self, service: str, roles: Mapping[str, frozenset[Role]]) -> None:
        """`roles`: method name → who may call it; a method that is not named is for nobody."""
        self._prefix = f"/{service}/"
        self._roles = roles
        self._warned_s = float("-inf")

    def __call__(self, method: str, context: Any) -> None:
        try:
            self._check(method, context)
        except (PermissionDeniedError, UnauthenticatedError) as error:
            now_s = time.monotonic()
            if now_s - self._warned_s >= WARN_EVERY_S:  # who is refused may try a thousand times a second
                self._warned_s = now_s
                log.warning("%s refused to %s: %s", method, context.peer(), error)
            raise

    def _check(self, method: str, context: Any) -> None:
        party = caller(context)
        if party is None or not method.startswith(self._prefix):
            return
        name = method.removeprefix(self._prefix)
        if party.role not in self._roles.get(name, frozenset()):
            raise PermissionDeniedError(f"not for the role {party.role.value}", object=f"{name} by {party}")
