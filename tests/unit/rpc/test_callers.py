"""Callers over connections that are older than what the server believes: each call and each stream is looked at anew."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from medes.certs.authority import Authority
from medes.certs.identity import IssuedIdentity
from medes.certs.parties import Party, Role
from medes.errors import UnauthenticatedError
from medes.rpc import callers as module
from medes.rpc.callers import Callers

SERVER = Party(Role.NODE, "server")


class Context:
    """The part of a call's context that says who calls."""

    def __init__(self, certificate: bytes | None, chain: bytes = b"") -> None:
        self._properties = {} if certificate is None else {"x509_pem_cert": [certificate]}
        if chain:
            self._properties["x509_pem_cert_chain"] = [chain]

    def auth_context(self) -> dict[str, Any]:
        return self._properties

    def peer(self) -> str:
        return "ipv4:10.0.0.7:1"


@pytest.fixture
def ca() -> Authority:
    return Authority.create()


@pytest.fixture
def identity(ca: Authority) -> IssuedIdentity:
    return IssuedIdentity(ca, SERVER)


def of(ca: Authority, role: Role = Role.NODE, days: float = 1.0) -> Context:
    return Context(ca.issue(Party(role, "n1"), days=days).certificate)


def change_ca(identity: IssuedIdentity, to: Authority) -> None:
    identity._authority = to
    identity._issue()
    identity.generation += 1


def test_who_is_of_the_ca_may_call_and_a_unix_socket_says_who_may(
    ca: Authority, identity: IssuedIdentity
) -> None:
    callers = Callers(identity)
    callers.check(of(ca))
    callers.check(Context(None))
    for stranger in (of(Authority.create()), Context(b"nonsense")):
        with pytest.raises(UnauthenticatedError, match="not believed"):
            callers.check(stranger)


def test_a_change_of_the_ca_is_seen_at_the_next_call(ca: Authority, identity: IssuedIdentity) -> None:
    callers, caller = Callers(identity), of(ca)
    callers.check(caller)
    change_ca(identity, Authority.create())
    with pytest.raises(UnauthenticatedError):
        callers.check(caller)
    change_ca(identity, ca)
    callers.check(caller)


def test_an_expired_certificate_of_a_node_opens_no_call_on_an_open_connection(
    ca: Authority, identity: IssuedIdentity
) -> None:
    now_s = [time.time()]
    callers = Callers(identity, lambda: now_s[0])
    node, runtime = of(ca), of(ca, Role.RUNTIME)
    callers.check(node)
    now_s[0] += 2 * 86400
    with pytest.raises(UnauthenticatedError):
        callers.check(node)
    callers.check(runtime)


def test_what_is_remembered_is_bounded(
    ca: Authority, identity: IssuedIdentity, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KNOWN_MAX", 4)
    callers = Callers(identity)
    for _ in range(10):
        callers.check(of(ca))
        assert len(callers._until_s) <= 4


async def test_streams_of_who_is_believed_no_more_end_and_others_go_on(
    ca: Authority, identity: IssuedIdentity
) -> None:
    callers, other = Callers(identity), Authority.create()
    ca.believe(ca.certificate_pem + other.certificate_pem)
    change_ca(identity, ca)
    begun = asyncio.Semaphore(0)

    async def stream(context: Context) -> None:
        with callers.streaming(context):
            begun.release()
            await asyncio.Event().wait()

    old, new = (asyncio.create_task(stream(of(a))) for a in (ca, other))
    for _ in range(2):
        await begun.acquire()
    callers.look_again()
    await asyncio.sleep(0)
    assert not old.done() and not new.done()
    change_ca(identity, other)
    callers.look_again()
    with pytest.raises(UnauthenticatedError):
        await old
    assert not new.done()
    new.cancel()
    with pytest.raises(asyncio.CancelledError):
        await new
    assert not callers._streams and not callers._ended
