"""Who a certificate is for: a role and a name, written into it as the URI `medes://role/name`.

Servers read the URI of whoever calls. Clients check the DNS name that goes with it, so that they know *whom* they have
reached and not only which address: an address says nothing on a machine, or in a cluster, that others use as well.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable
from dataclasses import dataclass

from medes.errors import InvalidArgumentError
from medes.limits import NAME_CHARS_MAX

_SCHEME = "medes://"
_DOMAIN = "domain"
_SUFFIX = "medes"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class Role(enum.Enum):
    """What a party may do: a node speaks for itself at controller and peers, a controller answers nodes, an observer
    looks at everything and changes nothing, a runtime uses the restore API over TCP."""

    NODE = "node"
    CONTROLLER = "controller"
    OBSERVER = "observer"
    RUNTIME = "runtime"

    @property
    def serves(self) -> bool:
        """Whether others connect to it; the certificates of those that only call cannot be used to listen."""
        return self in (Role.NODE, Role.CONTROLLER)


@dataclass(frozen=True, slots=True)
class Party:
    """`domains` narrows a node to these dedup domains; None: the certificate does not narrow it."""

    role: Role
    name: str
    domains: frozenset[str] | None = None

    @property
    def uris(self) -> list[str]:
        """As they stand in the certificate."""
        domains = sorted(self.domains or ())
        return [f"{_SCHEME}{self.role.value}/{self.name}", *(f"{_SCHEME}{_DOMAIN}/{d}" for d in domains)]

    @property
    def server_name(self) -> str:
        """The DNS name that its clients demand of it."""
        return CONTROLLER_SERVER_NAME if self.role is Role.CONTROLLER else node_server_name(self.name)

    def admits(self, domain: str) -> bool:
        """Whether its certificate lets it have to do with a dedup domain."""
        return self.domains is None or domain in self.domains

    def check(self) -> None:
        """Raises invalid_argument for a name that cannot stand in a certificate."""
        if self.domains is not None and (self.role is not Role.NODE or not self.domains):
            raise InvalidArgumentError(
                "only a node is narrowed to domains, to one at least", object=self.name
            )
        for name in (self.name, *(self.domains or ())):
            if len(name) > NAME_CHARS_MAX or not _NAME.fullmatch(name):
                raise InvalidArgumentError(
                    f"{name[:50]!r} is not a name",
                    object=self.role.value,
                    hint=f"letters, digits, '.', '_', '-', at most {NAME_CHARS_MAX} characters",
                )

    def __str__(self) -> str:
        narrowed = "" if self.domains is None else f" ({', '.join(sorted(self.domains))})"
        return f"{self.role.value} {self.name}{narrowed}"


CONTROLLER_SERVER_NAME = f"{Role.CONTROLLER.value}.{_SUFFIX}"


def node_server_name(node_id: str) -> str:
    """What a client demands of the server of this node. DNS names know no case: nor do node names here."""
    return f"{node_id.lower()}.{Role.NODE.value}.{_SUFFIX}"


def party_of(uris: Iterable[str]) -> Party | None:
    """The party that a certificate's URIs name; None unless it is exactly one of a known role."""
    found: list[tuple[Role, str]] = []
    domains: set[str] = set()
    for uri in uris:
        if not uri.startswith(_SCHEME):
            continue
        kind, _, name = uri.removeprefix(_SCHEME).partition("/")
        if kind == _DOMAIN:
            domains.add(name)
            continue
        try:
            found.append((Role(kind), name))
        except ValueError:
            return None
    if len(found) != 1:
        return None
    return Party(*found[0], frozenset(domains) or None)
