"""What page transports tell each other, in the messages of the peer service: transport → bytes.

RDMA has fields of its own, older than the maps: what it tells stays in these, where older agents look for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medes import native
from medes.rpc.gen import peer_pb2
from medes.transport.rdma import messages
from medes.transport.rdma.rdma_node import RdmaAnswer

RDMA = "rdma"


def put_offers(request: Any, offers: Mapping[str, bytes]) -> None:
    for name, offer in offers.items():
        if name == RDMA:
            request.rdma.CopyFrom(endpoint_to_proto(messages.unpack_endpoint(offer)))
        else:
            request.offers[name] = offer


def offers_of(request: Any) -> dict[str, bytes]:
    """Raises invalid_argument for a GID that is not 16 bytes."""
    offers = dict(request.offers)
    if request.HasField("rdma"):
        offers[RDMA] = messages.pack_endpoint(endpoint_from_proto(request.rdma))
    return offers


def put_answers(response: Any, answers: Mapping[str, bytes]) -> None:
    for name, answer in answers.items():
        if name == RDMA:
            typed = messages.unpack_answer(answer)
            if typed.endpoint is not None:
                response.rdma.CopyFrom(endpoint_to_proto(typed.endpoint))
                response.regions.extend(region_to_proto(r) for r in typed.regions)
        else:
            response.answers[name] = answer


def answers_of(response: Any) -> dict[str, bytes]:
    """Raises invalid_argument for a GID that is not 16 bytes."""
    answers = dict(response.answers)
    if response.HasField("rdma"):
        regions = tuple(region_from_proto(r) for r in response.regions)
        packed = messages.pack_answer(RdmaAnswer(endpoint_from_proto(response.rdma), regions))
        assert packed is not None
        answers[RDMA] = packed
    return answers


def put_news(response: Any, news: Mapping[str, bytes]) -> None:
    for name, told in news.items():
        if name == RDMA:
            response.regions.extend(region_to_proto(r) for r in messages.unpack_regions(told))
        else:
            response.news[name] = told


def news_of(response: Any) -> dict[str, bytes]:
    news = dict(response.news)
    if response.regions:
        news[RDMA] = messages.pack_regions(region_from_proto(r) for r in response.regions)
    return news


def put_in_use(request: Any, domains: Mapping[str, Sequence[str]]) -> None:
    for name, of_transport in domains.items():
        if name == RDMA:
            request.rdma_domains.extend(of_transport)
        else:
            request.in_use[name].domains.extend(of_transport)


def in_use_of(request: Any) -> dict[str, list[str]]:
    found = {name: list(used.domains) for name, used in request.in_use.items()}
    if request.rdma_domains:
        found[RDMA] = list(request.rdma_domains)
    return found


def endpoint_to_proto(endpoint: native.RdmaEndpoint) -> peer_pb2.RdmaEndpoint:
    return peer_pb2.RdmaEndpoint(
        queue_pair_number=endpoint.queue_pair_number,
        packet_sequence_number=endpoint.packet_sequence_number,
        gid=endpoint.gid,
        lid=endpoint.lid,
        path_mtu=endpoint.path_mtu,
        max_rd_atomic=endpoint.max_rd_atomic,
        port=endpoint.port,
    )


def endpoint_from_proto(value: peer_pb2.RdmaEndpoint) -> native.RdmaEndpoint:
    """Raises invalid_argument for a GID that is not 16 bytes."""
    return native.RdmaEndpoint(
        value.queue_pair_number,
        value.packet_sequence_number,
        value.gid,
        value.lid,
        value.path_mtu,
        value.max_rd_atomic,
        value.port,
    )


def region_to_proto(region: native.RdmaRegion) -> peer_pb2.RdmaRegion:
    return peer_pb2.RdmaRegion(
        base_id=region.base_id, address=region.address, length=region.length, remote_key=region.remote_key
    )


def region_from_proto(value: peer_pb2.RdmaRegion) -> native.RdmaRegion:
    return native.RdmaRegion(value.base_id, value.address, value.length, value.remote_key)
