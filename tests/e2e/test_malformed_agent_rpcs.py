"""Hostile requests at every RPC of a real agent, on the restore API and between peers: it blames the caller and lives."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from medes.rpc.gen import agent_pb2, peer_pb2

from medes.certs.parties import node_server_name
from medes.errors import InternalError, MedesError
from medes.rpc.channel import sync_channel
from tests.support.certificates import of_run
from tests.support.cluster import Cluster
from tests.support.hostile import scramble

AGENT = agent_pb2.DESCRIPTOR.services_by_name["AgentService"]
PEER = peer_pb2.DESCRIPTOR.services_by_name["PeerService"]
# Watch would wait for events; the other stream ends by itself.
CALLS = [(s, m.name) for s in (AGENT, PEER) for m in s.methods if m.name != "Watch"]
ROUNDS = 40


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder: Path = tmp_path_factory.mktemp("agent")
    with Cluster(folder, nodes=1) as running:
        yield running


def hostile(service: Any, method: str, rng: random.Random) -> Any:
    message = getattr(
        agent_pb2 if service is AGENT else peer_pb2, service.methods_by_name[method].input_type.name
    )()
    scramble(message, rng)
    if method == "Register":
        # Never a process that exists: this machine has others' processes.
        message.pids[:] = [p for p in message.pids if p < 1 or p > 1 << 22]
        message.cgroup = rng.choice(["", "/no/such/cgroup", "../../..", "a\x00b", "c" * 5000])
    return message


@pytest.mark.parametrize(("service", "method"), CALLS, ids=lambda x: getattr(x, "name", x))
def test_hostile_requests(cluster: Cluster, service: Any, method: str) -> None:
    agent = cluster.agents[0]
    with cluster.controller_client() as controller:
        peer = controller.nodes()[0].endpoints.grpc_address
    rng = random.Random(f"{service.name}.{method}")
    node = dict(identity=of_run("n9"), server_name=node_server_name("n0"))
    with sync_channel(agent.address) if service is AGENT else sync_channel(peer, **node) as channel:
        streams = service.methods_by_name[method].server_streaming
        open_call = channel.unary_stream if streams else channel.unary_unary
        call = open_call(f"/medes.v1.{service.name}/{method}")
        for i in range(ROUNDS):
            data = rng.randbytes(i * 3) if i % 4 == 0 else hostile(service, method, rng).SerializeToString()
            error = outcome(call, data)
            assert not isinstance(error, InternalError), (data, error)
    with agent.client() as client:
        assert client.node().node_id == "n0"
        assert client.list() == []


def outcome(
    call: grpc.UnaryUnaryMultiCallable | grpc.UnaryStreamMultiCallable, data: bytes
) -> MedesError | None:
    try:
        answer = call(data, timeout=20)
        if not isinstance(answer, bytes):
            list(answer)
    except MedesError as error:
        return error
    return None
