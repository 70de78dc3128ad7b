"""Tokens of this node's page server: derived from a secret of the node, the reading node, the domain and the epoch.

An epoch lasts `page_token_s`. The token of the present one and of the one before are taken, so that a token is good for
one to two lives, and one that was kept longer for nothing. Derived, so that an agent that was started anew grants the
same tokens, and readers which are open elsewhere go on; hence epochs of the calendar, not of this process.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass

SECRET_BYTES = 32


@dataclass(frozen=True, slots=True)
class Token:
    """`valid_s`: seconds left."""

    token: bytes
    valid_s: float


class PageTokens:
    """Of one holder. Plain computation: what is granted is the page server's business."""

    def __init__(self, secret: bytes, life_s: float, now_s: Callable[[], float]) -> None:
        """`now_s`: the calendar, in seconds."""
        self._secret = secret
        self._life_s = life_s
        self._now_s = now_s

    def good(self, node_id: str, domain: str) -> list[Token]:
        """The tokens with which that node may read the domain now; the one to hand out first."""
        now_s = self._now_s()
        epoch = int(now_s // self._life_s)
        return [
            Token(self._derived(node_id, domain, e), (e + 2) * self._life_s - now_s)
            for e in (epoch, epoch - 1)
        ]

    def _derived(self, node_id: str, domain: str, epoch: int) -> bytes:
        text = f"{epoch}:{len(node_id)}:{node_id}{domain}".encode()
        return hmac.new(self._secret, text, hashlib.sha256).digest()
