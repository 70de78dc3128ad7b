"""Who may call what of the controller: nodes what they need, observers what `medes top` shows."""

from __future__ import annotations

from medes.certs.parties import Role
from medes.rpc.identity import RoleAccess

SERVICE_NAME = "medes.v1.ControllerService"

_NODE = frozenset({Role.NODE})
_OBSERVER = frozenset({Role.OBSERVER})

ACCESS = RoleAccess(
    SERVICE_NAME,
    {
        "JoinNode": _NODE,
        "Heartbeat": _NODE,
        "LeaveNode": _NODE,
        "LookupFingerprints": _NODE,
        "PublishBase": _NODE,
        "RetireBase": _NODE,
        "AdviseBase": _NODE,
        "AnnounceSandboxes": _NODE,
        "ListNodes": _NODE | _OBSERVER,
        "ListSandboxes": _OBSERVER,
        "GetStatistics": _OBSERVER,
    },
)
