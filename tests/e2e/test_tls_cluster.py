"""A whole cluster over mTLS: controller, peers and page servers; base pages of the other node cross encrypted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from medes.rpc.gen import peer_pb2 as pb
from medes.rpc.gen.peer_pb2_grpc import PeerServiceStub

from medes.client import MedesClient
from medes.errors import AgentUnreachableError, PermissionDeniedError
from medes.rpc.channel import sync_channel
from medes.types import SandboxState
from tests.support.certificates import Authority
from tests.support.cluster import Cluster, wait_until
from tests.support.counter_app import App
from tests.support.ports import free_port

pytestmark = pytest.mark.live


def test_dedup_and_restore_from_another_nodes_base(
    tmp_path: Path, make_cluster: Callable[..., Cluster], make_app: Callable[..., App]
) -> None:
    ca = Authority(tmp_path)
    server, nodes = ca.issue("controller"), ca.issue("n0", "n1")
    settings = tmp_path / "medes.toml"
    settings.write_text(
        f"[agent]\nnode_certificates = true\n[agent.tls]\ncertificate = '{nodes.certificate}'\n"
        f"private_key = '{nodes.private_key}'\nca = '{nodes.ca}'\n"
    )
    tcp = f"127.0.0.1:{free_port()}"
    cluster = make_cluster(
        nodes=2,
        controller_flags=(
            f"--tls-certificate={server.certificate}",
            f"--tls-private-key={server.private_key}",
            f"--tls-ca={server.ca}",
            "--node-certificates",
        ),
        config=settings,
    )
    cluster.agents[1].end()
    cluster.agents[1].set(listen_tcp=tcp)
    cluster.agents[1].start()
    cluster.wait_joined()
    apps = [make_app(seed=n) for n in range(2)]
    with cluster.agents[0].client() as one, MedesClient(tcp, tls=ca.issue("runtime")) as two:
        one.register("counter", pids=[apps[0].pid], sandbox_id="a")
        two.register("counter", pids=[apps[1].pid], sandbox_id="b")
        assert one.dedup("a").report.base_bytes_added > 0
        report = two.dedup("b").report
        assert (report.base_bytes_added, report.remote_pages_read > 0) == (0, True)
        assert report.pages_by_transport.keys() == {"tcp+tls"}
        for client, sandbox_id, app in ((one, "a", apps[0]), (two, "b", apps[1])):
            assert client.restore(sandbox_id).report.was_dedup
            app.ask()
            wait_until(lambda c=client, i=sandbox_id: c.get(i).state is SandboxState.WARM, "complete")
    with MedesClient(tcp, timeout_s=5) as plain, pytest.raises(AgentUnreachableError):
        plain.list()
    with cluster.controller_client(tls=ca.issue("viewer")) as controller:
        peer = next(n.endpoints.grpc_address for n in controller.nodes() if n.endpoints.node_id == "n0")
    with sync_channel(peer, ca.issue("n1")) as channel:
        stub = PeerServiceStub(channel)
        assert stub.OpenPages(pb.OpenPagesRequest(node_id="n1", domain="d")).token
        for call, request in (
            (stub.Pin, pb.PinRequest(node_id="n0", holder_id="h", domain="d", base_ids=[1])),
            (stub.Unpin, pb.UnpinRequest(node_id="n0", holder_id="h")),
            (stub.ReconcilePins, pb.ReconcilePinsRequest(node_id="n0")),
            (stub.OpenPages, pb.OpenPagesRequest(node_id="n0", domain="d")),
            (stub.KeepPages, pb.KeepPagesRequest(node_id="n0", domains=["d"])),
        ):
            with pytest.raises(PermissionDeniedError, match="for another node"):
                call(request)
        with pytest.raises(PermissionDeniedError, match="for another node"):
            list(stub.ListFingerprints(pb.ListFingerprintsRequest(node_id="n0", domain="default", base_id=1)))
