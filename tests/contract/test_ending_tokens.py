"""Tokens of the page server have an end: what readers notice of it (nothing), and what somebody gets who kept one."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from medes import errors, native
from medes.certs.parties import node_server_name
from tests.support.certificates import Authority, shown
from tests.support.cluster import wait_until
from tests.support.page_links import DOMAIN, LARGE, SMALL, SlabWorld

SHORT_S = 0.2


class Served:
    """A page server of node n0 and readers of node n1, over TLS."""

    def __init__(self, folder: Path) -> None:
        ca = Authority(folder)
        self.world = SlabWorld(folder)
        self.server = native.PageServer("127.0.0.1", identity=shown(ca.pem("n0")))
        self.world.publish(self.server)
        self.n1 = shown(ca.pem("n1"))
        self.wake = os.eventfd(0, os.EFD_NONBLOCK)
        self.readers: list[native.PageReader] = []

    def token(self, valid_s: float | None = None) -> bytes:
        token = os.urandom(32)
        self.server.grant(token, DOMAIN, "n1", valid_s)
        return token

    def reader(self, token: bytes, **options: int) -> native.PageReader:
        made = native.tcp_reader(
            self.server.address, token, identity=self.n1, server_name=node_server_name("n0"), **options
        )
        self.readers.append(made)
        return made

    def reads(self, reader: native.PageReader, base_id: int = SMALL) -> bool:
        return reader.read(base_id, 4096, 8192) == self.world.expect(base_id, 4096, 8192)

    def close(self) -> None:
        for reader in self.readers:
            reader.close()
        self.server.close()
        os.close(self.wake)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    served = Served(tmp_path)
    yield served
    served.close()


def test_an_idle_connection_ends_with_its_token_and_a_replayed_one_is_refused(served: Served) -> None:
    token = served.token(SHORT_S)
    reader = served.reader(token, attempts=1)
    assert served.reads(reader)
    wait_until(lambda: served.server.stats()["ended_tokens"] == 1, "its connection was ended")
    assert served.server.stats()["connections_open"] == 0
    with pytest.raises(errors.UnauthenticatedError):
        served.reader(token)
    assert served.server.stats()["refused_tokens"] == 1
    assert reader.read_batch([(SMALL, 0, 16)])[0][0] == "unauthenticated"


def test_a_read_whose_token_has_ended_waits_for_the_next(served: Served) -> None:
    reader = served.reader(served.token(SHORT_S), attempts=1, wake=served.wake)
    wait_until(lambda: served.server.stats()["ended_tokens"] == 1, "its connection was ended")
    read: list[bool] = []
    thread = threading.Thread(target=lambda: read.append(served.reads(reader)))
    thread.start()
    assert select.select([served.wake], [], [], 20)[0], "it asks"
    reader.readdress(served.server.address, served.token())
    thread.join(20)
    assert read == [True]
    assert reader.stats()["refused_tokens"] == 1


def test_a_read_that_gets_the_same_token_again_fails(served: Served) -> None:
    token = served.token(SHORT_S)
    reader = served.reader(token, attempts=1, wake=served.wake)
    wait_until(lambda: served.server.stats()["ended_tokens"] == 1, "its connection was ended")
    outcomes: list[str] = []
    thread = threading.Thread(target=lambda: outcomes.append(reader.read_batch([(SMALL, 0, 16)])[0][0]))
    thread.start()
    assert select.select([served.wake], [], [], 20)[0], "it asks"
    reader.readdress(served.server.address, token)
    thread.join(20)
    assert outcomes == ["unauthenticated"]


@pytest.mark.parametrize("streams", [1, 3])
def test_tokens_change_under_reads_and_none_fails(served: Served, streams: int) -> None:
    """Each reader's connections are made anew beside its reads, and the old ones end behind them."""
    reader = served.reader(served.token(), attempts=1, streams=streams, wake=served.wake)
    ending, wrong, rounds = threading.Event(), [], [0, 0]

    def read(which: int) -> None:
        wanted = [(LARGE, 0, 1 << 20), (SMALL, 0, 4096), (LARGE, 1 << 20, 1 << 18)]
        expected = [("ok", served.world.expect(*w)) for w in wanted]
        while not ending.is_set():
            got = reader.read_batch(wanted)
            rounds[which] += 1
            if got != expected:
                wrong.append([status for status, _ in got])

    threads = [threading.Thread(target=read, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(12):
        before = list(rounds)
        wait_until(lambda b=before: all(n > m for n, m in zip(rounds, b, strict=True)), "they read")
        reader.readdress(served.server.address, served.token())
        assert reader.reconnect()
    ending.set()
    for thread in threads:
        thread.join(20)
    assert wrong == []
    stats = reader.stats()
    assert (stats["failures"], stats["refused_tokens"]) == (0, 0)
    assert stats["reconnects"] >= 12
    wait_until(lambda: served.server.stats()["connections_open"] == streams, "the old ones have ended")


def test_every_connection_can_be_ended_and_readers_go_on(served: Served) -> None:
    reader = served.reader(served.token())
    for _ in range(20):
        assert served.reads(reader)
        served.server.end_connections()
    wait_until(lambda: served.server.stats()["connections_open"] == 0, "the last has ended")
    assert served.reads(reader)
    assert served.server.stats()["connections_total"] > 1


def test_a_peer_that_is_not_believed_any_more_loses_its_connection(served: Served, tmp_path: Path) -> None:
    """The reader gets another CA: the connection that it had under the old one is not used again."""
    reader = served.reader(served.token(), attempts=1)
    assert served.reads(reader)
    other = Authority(tmp_path / "other")
    pem = other.pem("n1")
    served.n1.replace(pem.certificate, pem.private_key, pem.ca)
    assert not reader.reconnect()
    assert reader.read_batch([(SMALL, 0, 16)])[0][0] == "unauthenticated"


def test_ended_tokens_are_forgotten(served: Served) -> None:
    for _ in range(500):
        served.token(0.0)
    assert served.server.grants < 100
    kept = served.token()
    for _ in range(500):
        served.token(0.0)
    assert served.reads(served.reader(kept))
