"""What transports tell each other comes out of the peer messages as it went in; RDMA's in the fields it always had."""

from __future__ import annotations

import pytest
from medes.rpc.gen import peer_pb2

from medes import native
from medes.agent import transport_fields as fields
from medes.errors import InvalidArgumentError
from medes.transport.rdma import messages
from medes.transport.rdma.rdma_node import RdmaAnswer

ENDPOINT = native.RdmaEndpoint(7, 8, bytes(range(16)), 9, 4096, 16, 1)
REGIONS = [native.RdmaRegion(5, 1 << 40, 8192, 0xFFFFFFFF), native.RdmaRegion(6, 4096, 4096, 1)]
OFFER = messages.pack_endpoint(ENDPOINT)
ANSWER = messages.pack_answer(RdmaAnswer(ENDPOINT, tuple(REGIONS)))
assert ANSWER is not None


def test_offers() -> None:
    offers = {"rdma": OFFER, "mine": b"\x00\xff"}
    request = peer_pb2.OpenPagesRequest()
    fields.put_offers(request, offers)
    assert fields.offers_of(peer_pb2.OpenPagesRequest.FromString(request.SerializeToString())) == offers
    assert dict(request.offers) == {"mine": b"\x00\xff"} and request.rdma.gid == bytes(range(16))


def test_answers() -> None:
    answers = {"rdma": ANSWER, "mine": b""}
    response = peer_pb2.OpenPagesResponse()
    fields.put_answers(response, answers)
    assert fields.answers_of(peer_pb2.OpenPagesResponse.FromString(response.SerializeToString())) == answers
    assert [r.base_id for r in response.regions] == [5, 6] and response.rdma.queue_pair_number == 7
    assert fields.answers_of(peer_pb2.OpenPagesResponse()) == {}


def test_news() -> None:
    news = {"rdma": messages.pack_regions(REGIONS), "mine": b"x"}
    response = peer_pb2.PinResponse()
    fields.put_news(response, news)
    assert fields.news_of(peer_pb2.PinResponse.FromString(response.SerializeToString())) == news
    assert [r.remote_key for r in response.regions] == [0xFFFFFFFF, 1]


def test_what_is_in_use() -> None:
    in_use = {"rdma": ["a", "b"], "mine": ["a"]}
    request = peer_pb2.KeepPagesRequest()
    fields.put_in_use(request, in_use)
    assert fields.in_use_of(peer_pb2.KeepPagesRequest.FromString(request.SerializeToString())) == in_use
    assert list(request.rdma_domains) == ["a", "b"]


def test_bytes_that_are_no_message_of_rdma_are_refused() -> None:
    for data in (b"", OFFER[:-1], OFFER + b"x"):
        with pytest.raises(InvalidArgumentError):
            messages.unpack_endpoint(data)
    for data in (ANSWER[:30], ANSWER + b"x"):
        with pytest.raises(InvalidArgumentError):
            messages.unpack_answer(data)
