"""Who a caller is, by the client certificate that TLS has verified."""

from __future__ import annotations

from typing import Any

from medes.errors import PermissionDeniedError, UnauthenticatedError


def certificate_names(context: Any) -> set[str] | None:
    """Common name and alternative names of the caller's certificate; None where TLS verified none (or is not used)."""
    properties = context.auth_context()
    names = {
        value.decode("utf-8", "replace")
        for key in ("x509_common_name", "x509_subject_alternative_name")
        for value in properties.get(key, ())
    }
    return names or None


def require_node(context: Any, node_id: str) -> None:
    """Raises unauthenticated without a verified certificate, permission_denied when it does not name the node."""
    names = certificate_names(context)
    if names is None:
        raise UnauthenticatedError("a verified client certificate is needed", object=f"node {node_id}")
    if node_id not in names:
        raise PermissionDeniedError(
            "the caller's certificate is for another node",
            object=f"node {node_id}",
            hint="the common name or an alternative name must equal node_id",
        )
