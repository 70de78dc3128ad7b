"""Page tokens change under restores without a pause, over TLS, and nobody notices; who kept one has nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from medes.rpc.gen import peer_pb2
from medes.rpc.gen.peer_pb2_grpc import PeerServiceStub

from medes import native
from medes.certs.parties import node_server_name
from medes.errors import UnauthenticatedError
from medes.rpc.channel import sync_channel
from tests.support.certificates import of_run, shown_as
from tests.support.cluster import Cluster, wait_until
from tests.support.counter_app import App
from tests.support.metrics import sample
from tests.support.ports import free_port
from tests.support.restores import ContinuousRestores, register_two

pytestmark = pytest.mark.live

ROTATIONS = 6
REFUSED = 'medes_agent_refused_page_connections{reason="token"}'
ENDED = "medes_agent_ended_page_connections"


def test_tokens_change_under_restores(
    make_cluster: Callable[..., Cluster], make_app: Callable[..., App]
) -> None:
    metrics = f"127.0.0.1:{free_port()}"
    cluster = make_cluster(nodes=2, page_token_s=1, node_flags={"n0": {"metrics_address": metrics}})
    holder, user = cluster.agents
    app = register_two(holder, user, make_app)
    peer = str(holder.flag("peer_address"))
    with sync_channel(peer, of_run("n7"), server_name=node_server_name("n0")) as channel:
        stub = PeerServiceStub(channel)

        def opened() -> peer_pb2.OpenPagesResponse:
            return stub.OpenPages(peer_pb2.OpenPagesRequest(node_id="n7", domain="default"))

        def connect(token: bytes) -> native.PageReader:
            name = node_server_name("n0")
            return native.tcp_reader(
                answer.page_address, token, attempts=1, identity=shown_as("n7"), server_name=name
            )

        answer = opened()
        assert 0 < answer.token_valid_ms <= 2000
        kept = connect(answer.token)
        seen = {answer.token}
        with ContinuousRestores(user, "b", app) as restores:
            while len(seen) < ROTATIONS:
                restores.more(1)
                seen.add(opened().token)
        assert restores.transports == {"tcp+tls"} and restores.remote_pages > 0
        assert sample(metrics, REFUSED) == 0, "n1 has asked in time, always"
        # n7 never asked again: its connection has ended, and the token that it kept opens no other.
        wait_until(lambda: sample(metrics, ENDED) == 1, "its connection ends")
        assert kept.read_batch([(1, 0, 4096)])[0][0] == "unauthenticated"
        with pytest.raises(UnauthenticatedError):
            connect(answer.token)
        assert sample(metrics, REFUSED) == 2
        fresh = connect(opened().token)
        assert fresh.read_batch([(1, 0, 4096)])[0][0] == "not_found"
    kept.close()
    fresh.close()
