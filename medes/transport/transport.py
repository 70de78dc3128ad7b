"""The contract of page transports beside TCP: how base pages of other nodes are read faster, or by another way.

TCP stays with every node: it carries the tokens, and what another transport cannot do at the moment goes over it. So a
transport may refuse, lose connections and come late; it must never give wrong bytes as right ones (pages are checked
when they are rebuilt, and a sandbox whose pages are wrong is lost).

Two halves. The holder publishes slabs and answers offers; the reader makes an offer, and gets a `native.PageReader`
from the answer. What they tell each other is bytes of the transport's own, carried by the agents' peer service, which
says who asks (by certificate) and for which dedup domain. Another version of the transport may be at the other end.

All methods are called in the agent's event loop and return at once, unless they say that they block or are `async`;
blocking work of the async ones belongs into threads. Readers are used by C++ threads, several at a time, and the
holder's side must serve without the GIL if reads are to be fast: `native.callback_reader` is for experiments.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable
from typing import ClassVar, Self

from medes import native
from medes.config import AgentSettings

NO_END_S = math.inf
# Carries this node's offer to the peer: its answer, or None where it has no such transport or refuses. May be repeated:
# a later offer replaces the one before. Raises peer_unreachable, not_found and what else the peer service answers.
Exchange = Callable[[bytes], Awaitable[bytes | None]]


class Transport(ABC):
    """One way on which a node serves its slabs and reads those of others. Entry point group: `medes.transports`."""

    name: ClassVar[str]  # as in the entry point; what readers that are made here call themselves
    # Whether page bytes and who they are for are safe on the way. Otherwise `auto` needs `trusts` to agree.
    encrypts: ClassVar[bool] = False
    preference: ClassVar[int] = 0  # of those that `auto` takes the highest is tried first; TCP is behind all

    @classmethod
    @abstractmethod
    def open(cls, settings: AgentSettings) -> Self:
        """For this node. Blocks for a second at most. Raises unsupported, with what is missing, where it cannot run: an
        agent that was told this transport by name then does not start, with `auto` it does without."""

    @classmethod
    def trusts(cls, settings: AgentSettings) -> bool:
        """Whether the settings say that the way is the cluster's own, so that it needs no encryption."""
        return False

    @property
    def where(self) -> str:
        """For the log: ports, devices, folders."""
        return ""

    # --- serving -------------------------------------------------------------------------------------------
    @abstractmethod
    def publish(self, slab: native.Slab, domain: str) -> bool:
        """Serves a slab to peers with access to the domain; may block as long as touching its pages takes. False,
        with a line in the log: not here, peers read it over TCP."""

    @abstractmethod
    def withdraw(self, base_id: int) -> None:
        """Ends that before the slab goes: later reads get not_found or peer_unreachable, never other bytes.
        Idempotent."""

    @abstractmethod
    def accept(self, node_id: str, domain: str, offer: bytes, now_s: float, valid_s: float) -> bytes | None:
        """Access for that node to that domain's slabs and no others, for `valid_s` at most; what it had ends. None
        where it gets none. The offer is a stranger's: raises invalid_argument where it is not one."""

    def news(self, node_id: str, domain: str, base_ids: Iterable[int]) -> bytes:
        """What a node with access must learn of these bases, which it has just pinned; empty for nothing."""
        return b""

    @abstractmethod
    def release(self, node_id: str, domain: str) -> None:
        """Ends that node's access. Idempotent."""

    def keep(self, node_id: str, domains: Iterable[str], now_s: float) -> None:
        """That node says that it still reads these domains by this transport (see `in_use`)."""
        return

    def reap(self, silent_since_s: float, now_s: float) -> int:
        """Ends access that has neither been made nor kept since then, or whose time has come; how many. A holder that
        sees its readers come and go, and ends access itself, need not."""
        return 0

    # --- reading -------------------------------------------------------------------------------------------
    @abstractmethod
    async def attach(
        self, node_id: str, domain: str, behind: native.PageReader, exchange: Exchange
    ) -> native.PageReader | None:
        """A reader of that node's bases that does by `behind` what this transport cannot (`native.fallback_reader`);
        None where the peer cannot be read this way. `behind` is the caller's, and closed with the reader that is
        returned. Called again for a node and domain when access is to be made anew; the reader of before is in use a
        while longer. Raises what the exchange raises (transient: the caller tries again), and unsupported where it
        never will work."""

    def learn(self, node_id: str, domain: str, news: bytes) -> None:
        """What that node told of bases that were pinned there. News that cannot be read are ignored: TCP
        knows these bases."""
        return

    def keep_bases(self, node_id: str, base_ids: Iterable[int]) -> None:
        """That node's other bases are read no more. What was told of them may be forgotten; a pin brings it anew."""
        return

    def in_use(self, node_id: str) -> list[str]:
        """The domains that are read there by this transport at present; told to the node every so often."""
        return []

    # --- life ----------------------------------------------------------------------------------------------
    async def run(self) -> None:
        """What is to be done beside the reads, such as connecting anew. Cancelled before `close`; ends when it
        likes."""
        return

    def stats(self) -> dict[str, int]:
        """Counters for the metrics; `server_connections_open` and `client_connections_open` where there are any.
        Called by another thread."""
        return {}

    @abstractmethod
    def close(self) -> None:
        """Ends readers first, then what is served. May block for seconds. Idempotent."""
