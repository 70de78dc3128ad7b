"""A cluster with certificate files: nodes speak for themselves and of their domains, certificates are exchanged while
it runs, and base pages of the other node cross encrypted."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
from medes.rpc.gen import peer_pb2 as pb
from medes.rpc.gen.peer_pb2_grpc import PeerServiceStub

from medes.certs.files import renew_files
from medes.certs.identity import FileIdentity
from medes.certs.parties import Role, node_server_name
from medes.client import MedesClient
from medes.errors import AgentUnreachableError, NotFoundError, PermissionDeniedError
from medes.rpc.calls import SyncChannel
from medes.rpc.channel import sync_channel
from medes.rpc.tls import PLAINTEXT
from medes.types import SandboxState
from tests.support.certificates import Authority
from tests.support.cluster import Cluster, wait_until
from tests.support.counter_app import App
from tests.support.ports import free_port

pytestmark = pytest.mark.live


def flags(authority: Authority, name: str, role: Role = Role.NODE) -> dict[str, str]:
    files = authority.issue(name, role)
    return {"tls_certificate": files.certificate, "tls_private_key": files.private_key, "tls_ca": files.ca}


def test_dedup_and_restore_from_another_nodes_base(
    tmp_path: Path, make_cluster: Callable[..., Cluster], make_app: Callable[..., App]
) -> None:
    ca = Authority(tmp_path / "certs")
    tcp = f"127.0.0.1:{free_port()}"
    cluster = make_cluster(
        nodes=2,
        controller_flags=tuple(
            f"--{k.replace('_', '-')}={v}" for k, v in flags(ca, "main", Role.CONTROLLER).items()
        ),
        node_flags={"n0": flags(ca, "n0"), "n1": {**flags(ca, "n1"), "listen_tcp": tcp}},
    )
    apps = [make_app(seed=n) for n in range(2)]
    runtime = ca.issue("runtime", Role.RUNTIME)
    with cluster.agents[0].client() as one, MedesClient(tcp, tls=runtime) as two:
        one.register("counter", pids=[apps[0].pid], sandbox_id="a")
        two.register("counter", pids=[apps[1].pid], sandbox_id="b")
        assert one.dedup("a").report.base_bytes_added > 0
        report = two.dedup("b").report
        assert (report.base_bytes_added, report.remote_pages_read > 0) == (0, True)
        assert report.pages_by_transport.keys() == {"tcp+tls"}
        # Every node gets a new certificate and key; the controller too.
        for role, name in ((Role.NODE, "n0"), (Role.NODE, "n1"), (Role.CONTROLLER, "main")):
            renew_files(ca.authority, tmp_path / "certs" / role.value / f"{name}.crt")
        wait_until(lambda: all(b"read anew" in a.log.read_bytes() for a in cluster.agents), "taken over", 40)
        for client, sandbox_id, app in ((one, "a", apps[0]), (two, "b", apps[1])):
            assert client.restore(sandbox_id).report.was_dedup
            app.ask()
            wait_until(lambda c=client, i=sandbox_id: c.get(i).state is SandboxState.WARM, "complete")
        assert two.dedup("b").report.gross_saved_bytes > 0, "pins at the other node, over a new channel"
    observer = ca.issue("viewer", Role.OBSERVER)
    with MedesClient(tcp, tls=observer) as looks:
        assert [s.sandbox_id for s in looks.list()] == ["b"]
        with pytest.raises(PermissionDeniedError, match="role observer"):
            looks.purge("b")
    with MedesClient(tcp, tls=PLAINTEXT, timeout_s=5) as plain, pytest.raises(AgentUnreachableError):
        plain.list()
    with cluster.controller_client(tls=observer) as controller:
        peer = next(n.endpoints.grpc_address for n in controller.nodes() if n.endpoints.node_id == "n0")
    _refused_at_the_peer_service(peer, ca)


def _refused_at_the_peer_service(peer: str, ca: Authority) -> None:
    names = itertools.count(2)

    def stub(channel: object) -> PeerServiceStub:
        return PeerServiceStub(channel)

    def channel(role: Role = Role.NODE, domains: str = "") -> SyncChannel:
        files = ca.issue(f"n{next(names)}", role, domains=domains)
        return sync_channel(peer, FileIdentity(files), server_name=node_server_name("n0"))

    with channel() as opened:  # n2
        calls = stub(opened)
        assert calls.OpenPages(pb.OpenPagesRequest(node_id="n2", domain="d")).token
        for call, request in (
            (calls.Pin, pb.PinRequest(node_id="n0", holder_id="h", domain="d", base_ids=[1])),
            (calls.Unpin, pb.UnpinRequest(node_id="n0", holder_id="h")),
            (calls.ReconcilePins, pb.ReconcilePinsRequest(node_id="n0")),
            (calls.OpenPages, pb.OpenPagesRequest(node_id="n0", domain="d")),
            (calls.KeepPages, pb.KeepPagesRequest(node_id="n0", domains=["d"])),
        ):
            with pytest.raises(PermissionDeniedError, match="for another"):
                call(request)
        with pytest.raises(PermissionDeniedError, match="for another"):
            list(
                calls.ListFingerprints(pb.ListFingerprintsRequest(node_id="n0", domain="default", base_id=1))
            )
    with channel(domains="mine, ours") as opened:  # n3
        calls = stub(opened)
        assert calls.OpenPages(pb.OpenPagesRequest(node_id="n3", domain="ours")).token
        with pytest.raises(NotFoundError, match="no such base"):
            calls.OpenPages(pb.OpenPagesRequest(node_id="n3", domain="default"))
    for role in (Role.CONTROLLER, Role.OBSERVER, Role.RUNTIME):
        with channel(role) as opened, pytest.raises(PermissionDeniedError, match="not for the role"):
            stub(opened).OpenPages(pb.OpenPagesRequest(node_id="n4", domain="d"))
