"""Who a certificate is for: what is written into it is what is read from it, and doubt is nobody."""

from __future__ import annotations

import pytest

from medes.certs.authority import Authority, details
from medes.certs.parties import Party, Role, party_of
from medes.errors import InvalidArgumentError
from medes.rpc.identity import caller, require_node


@pytest.mark.parametrize(
    "party", [*(Party(role, "some.one-1") for role in Role), Party(Role.NODE, "n", frozenset({"a", "b"}))]
)
def test_a_certificate_names_its_party(party: Party) -> None:
    found = details(Authority.create().issue(party, ["10.0.0.1", "host.example"], days=1).certificate, "x")
    assert found.party == party
    assert found.names[-2:] == ("host.example", "10.0.0.1")
    assert (party.server_name in found.names) == party.role.serves


@pytest.mark.parametrize(
    "uris",
    [
        [],
        ["https://node/n0"],
        ["medes://admin/n0"],
        ["medes://node/n0", "medes://node/n1"],
        ["medes://node/n0", "medes://controller/c"],
        ["medes://domain/d"],
        ["MEDES://node/n0"],
    ],
)
def test_what_is_not_one_known_party_is_nobody(uris: list[str]) -> None:
    assert party_of(uris) is None


def test_names_that_cannot_stand_in_a_certificate_are_refused() -> None:
    for party in (
        Party(Role.NODE, ""),
        Party(Role.NODE, "a/b"),
        Party(Role.NODE, "n" * 300),
        Party(Role.NODE, "n", frozenset({"a,b"})),
        Party(Role.NODE, "n", frozenset()),
        Party(Role.OBSERVER, "n", frozenset({"a"})),
    ):
        with pytest.raises(InvalidArgumentError):
            Authority.create().issue(party, days=1)


class Call:
    def __init__(self, *uris: str, tls: bool = True) -> None:
        self._properties = {"transport_security_type": [b"ssl" if tls else b"insecure"]}
        if uris:
            self._properties["peer_uri"] = [u.encode() for u in uris]

    def auth_context(self) -> dict[str, list[bytes]]:
        return self._properties


def test_a_call_over_tls_without_a_party_is_never_taken_for_a_local_one() -> None:
    from medes.errors import PermissionDeniedError, UnauthenticatedError

    assert caller(Call(tls=False)) is None
    assert caller(Call("medes://node/n0")) == Party(Role.NODE, "n0")
    for uris in ((), ("medes://node/n0", "medes://node/n1"), ("spiffe://x/y",)):
        with pytest.raises(UnauthenticatedError, match="names no party"):
            caller(Call(*uris))
    assert require_node(Call("medes://node/n0"), "n0") is not None
    for uri in ("medes://node/n1", "medes://node/N0", "medes://controller/n0", "medes://runtime/n0"):
        with pytest.raises(PermissionDeniedError, match="for another"):
            require_node(Call(uri), "n0")
