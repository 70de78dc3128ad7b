"""Chance, as agent and controller see it: ids come from here; passed in, so that a simulation runs the same way again.

Secrets do not: a simulation's chance can be guessed.
"""

from __future__ import annotations

import secrets


class Chance:
    """What nobody can guess. Any thread may ask."""

    def bits(self, count: int) -> int:
        """A number below 2**count."""
        return secrets.randbits(count)

    def hex(self, size_bytes: int) -> str:
        """Twice as many digits."""
        return secrets.token_hex(size_bytes)
