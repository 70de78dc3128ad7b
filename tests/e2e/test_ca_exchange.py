"""Another CA for a cluster that runs, under restores without a pause: nothing of it is noticed by those who go along, and
who does not is out, whatever connection is open still."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from medes.rpc.gen import controller_pb2, peer_pb2
from medes.rpc.gen.controller_pb2_grpc import ControllerServiceStub
from medes.rpc.gen.peer_pb2_grpc import PeerServiceStub

from medes import native
from medes.certs.authority import Authority
from medes.certs.files import issue_files, renew_files
from medes.certs.folder import AUTHORITY_FILE, VARIABLE, load_authority, load_next, make_authority
from medes.certs.identity import IssuedIdentity
from medes.certs.parties import CONTROLLER_SERVER_NAME, Party, Role, node_server_name
from medes.cli.main import cli
from medes.client import MedesClient
from medes.errors import MedesError, UnauthenticatedError
from medes.rpc.calls import SyncChannel
from medes.rpc.channel import sync_channel
from tests.support.certificates import HOSTS, shown
from tests.support.cluster import Cluster, wait_until
from tests.support.counter_app import App
from tests.support.ports import free_port
from tests.support.restores import ContinuousRestores, register_two

pytestmark = pytest.mark.live

STRANGER = Party(Role.NODE, "n7")


class Known:
    """The ports of the cluster that take a node's certificate."""

    def __init__(self, cluster: Cluster) -> None:
        self.peers = {a.node_id: str(a.flag("peer_address")) for a in cluster.agents}
        self.controller = cluster._listen

    def peer(self, node_id: str, identity: IssuedIdentity) -> SyncChannel:
        return sync_channel(self.peers[node_id], identity, server_name=node_server_name(node_id), timeout_s=5)

    def of_controller(self, identity: IssuedIdentity) -> SyncChannel:
        return sync_channel(self.controller, identity, server_name=CONTROLLER_SERVER_NAME, timeout_s=5)

    def outcomes(self, identity: IssuedIdentity) -> list[bool]:
        """Whether each takes this identity, and is taken by it, over a new connection."""
        with self.of_controller(identity) as channel:
            taken = [_succeeds(lambda: ControllerServiceStub(channel).ListNodes(_NODES))]
        for node_id in self.peers:
            with self.peer(node_id, identity) as channel:
                taken.append(_succeeds(lambda c=channel: PeerServiceStub(c).OpenPages(_PAGES)))
        return taken


_NODES = controller_pb2.ListNodesRequest()
_PAGES = peer_pb2.OpenPagesRequest(node_id="n7", domain="default")


def _succeeds(call: Callable[[], object]) -> bool:
    try:
        call()
    except MedesError:
        return False
    return True


def medes(*arguments: str) -> str:
    result = CliRunner().invoke(cli, ["certs", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def believing(authority: Authority, *others: Authority) -> IssuedIdentity:
    """n7, signed by one CA, which believes that one and others."""
    authority.believe(b"".join(a.certificate_pem for a in (authority, *others)))
    return IssuedIdentity(authority, STRANGER, HOSTS)


@pytest.mark.timeout(400)
def test_the_ca_is_exchanged_under_restores(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make_cluster: Callable[..., Cluster],
    make_app: Callable[..., App],
) -> None:
    folder = tmp_path / "cluster"
    monkeypatch.setenv(VARIABLE, str(folder))
    old = make_authority(folder)
    # n0 and the controller are of this machine; n1 has files, as on another.
    written = issue_files(old, Party(Role.NODE, "n1"), HOSTS, days=1, folder=tmp_path / "n1")
    files = {
        "tls_certificate": written.certificate,
        "tls_private_key": written.private_key,
        "tls_ca": written.ca,
    }
    tcp = f"127.0.0.1:{free_port()}"
    cluster = make_cluster(nodes=2, node_flags={"n0": {"listen_tcp": tcp}, "n1": files})
    holder, user = cluster.agents
    app = register_two(holder, user, make_app)
    known = Known(cluster)
    behind = IssuedIdentity(old, STRANGER, HOSTS)  # does not go along
    with (
        known.peer("n0", behind) as channel,
        known.of_controller(behind) as to_controller,
        MedesClient(tcp, tls=IssuedIdentity(old, Party(Role.RUNTIME, "faas"), HOSTS)) as runtime,
        ContinuousRestores(user, "b", app) as restores,
    ):
        peer, controller = PeerServiceStub(channel), ControllerServiceStub(to_controller)
        pages = peer.OpenPages(_PAGES)
        name = node_server_name("n0")
        reader = native.tcp_reader(
            pages.page_address, pages.token, attempts=1, identity=shown(behind.pem), server_name=name
        )
        watching = Watching(runtime)
        controller.ListNodes(_NODES)

        medes("ca", "prepare")
        renew_files(load_authority(folder), written.certificate)  # and with it n1's ca.crt
        coming = load_next(folder)
        wait_until(lambda: all(known.outcomes(believing(coming, old))), "both are believed", 60)
        restores.more()

        medes("ca", "switch", "--at-once")
        assert load_authority(folder).name == coming.name
        renew_files(load_authority(folder), written.certificate)
        wait_until(lambda: all(known.outcomes(believing(coming))), "all show the new one's", 60)
        assert all(known.outcomes(believing(old, coming))), "the old one is believed still"
        assert peer.OpenPages(_PAGES).token and not watching.ended.is_set()
        restores.more()

        medes("ca", "retire", "--at-once")
        renew_files(load_authority(folder), written.certificate)
        wait_until(lambda: not any(known.outcomes(believing(old, coming))), "the old one is out", 60)
        assert all(known.outcomes(believing(coming)))
        restores.more()

        # Over what was opened while its certificate was good:
        for call in (lambda: peer.OpenPages(_PAGES), lambda: controller.ListNodes(_NODES), runtime.list):
            with pytest.raises(UnauthenticatedError):
                call()
        assert watching.ended.wait(20) and isinstance(watching.error, UnauthenticatedError)
        assert reader.read_batch([(1, 0, 4096)])[0][0] == "unauthenticated"
        reader.close()
        assert restores.transports == {"tcp+tls"}
    assert not (folder / "next.pem").exists() and (folder / AUTHORITY_FILE).exists()


class Watching:
    """A stream that a runtime holds open."""

    def __init__(self, client: MedesClient) -> None:
        self.ended = threading.Event()
        self.error: BaseException | None = None
        self._client = client
        threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        try:
            for _ in self._client.watch():
                pass
        except MedesError as error:
            self.error = error
        self.ended.set()
