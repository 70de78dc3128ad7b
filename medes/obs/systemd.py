"""Readiness for service managers: sd_notify, without a library."""

from __future__ import annotations

import os
import socket


def notify(state: str) -> bool:
    """Sends e.g. "READY=1" to systemd. False where no service manager listens; never raises."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path or path[0] not in "/@":
        return False
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.connect("\0" + path[1:] if path[0] == "@" else path)
            sock.sendall(state.encode())
    except OSError:
        return False
    return True
