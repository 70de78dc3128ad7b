"""Who may have to do with which dedup domains: settings, and what certificates narrow them to."""

from __future__ import annotations

from medes.certs.identity import Identity
from medes.config import AgentSettings
from medes.errors import PermissionDeniedError


class DomainRights:
    """Of this node and of those that call it. Use from one event loop."""

    def __init__(self, settings: AgentSettings, identity: Identity | None) -> None:
        """`identity`: what this node shows of itself; without one no certificate narrows anything."""
        self._settings = settings
        self._identity = identity
        self._narrowed: dict[str, frozenset[str]] = {}  # node → domains its certificate narrows it to

    def narrow(self, node_id: str, domains: frozenset[str] | None) -> None:
        """What the certificate of another node says, as it last called; None: nothing."""
        if domains is None:
            self._narrowed.pop(node_id, None)
        else:
            self._narrowed[node_id] = domains

    def may_read(self, node_id: str, domain: str) -> bool:
        """Whether settings and its own certificate let another node have to do with this node's bases of a domain."""
        narrowed = self._narrowed.get(node_id)
        return self._settings.may_read(node_id, domain) and (narrowed is None or domain in narrowed)

    def require_own(self, domain: str) -> None:
        """Raises permission_denied for a domain that this node's own certificate does not admit."""
        party = self._identity.party if self._identity is not None else None
        if party is not None and not party.admits(domain):
            raise PermissionDeniedError(
                "this node's certificate does not admit the domain",
                object=f"domain {domain}",
                hint=f"it admits {', '.join(sorted(party.domains or ()))}",
            )
