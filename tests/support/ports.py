"""TCP ports for daemons that must come back at their old address."""

from __future__ import annotations

import itertools
import os
import socket

# Below the range from which the kernel takes ports for outgoing connections: between the choice and its use none of
# those, of which a test run makes thousands, can take it.
_FIRST, _COUNT = 12_000, 20_000
_next = itertools.count(int.from_bytes(os.urandom(4)))


def free_port() -> int:
    """A port nobody listens on now, another one each time."""
    for number in itertools.islice(_next, _COUNT):
        port = _FIRST + number % _COUNT
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError("no free port")
