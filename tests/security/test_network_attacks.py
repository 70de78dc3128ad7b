"""The attack list of docs/threat-model.md for the network: real daemons with the settings as they come; what each
attacker has, what it tries, and what it gets."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from medes.rpc.gen import controller_pb2, peer_pb2
from medes.rpc.gen.controller_pb2_grpc import ControllerServiceStub
from medes.rpc.gen.peer_pb2_grpc import PeerServiceStub

from medes import native
from medes.certs.folder import VARIABLE
from medes.certs.identity import Identity, IssuedIdentity
from medes.certs.parties import CONTROLLER_SERVER_NAME, Party, Role, node_server_name
from medes.errors import MedesError, NotFoundError, PermissionDeniedError, UnauthenticatedError
from medes.rpc.channel import sync_channel
from tests.support.certificates import Authority, of_run, shown
from tests.support.cluster import Cluster
from tests.support.counter_app import App

pytestmark = pytest.mark.live

BANK = "bank"


class World:
    """One node with a base of tenant "bank", its controller, and where all of it listens."""

    def __init__(self, cluster: Cluster, app: App) -> None:
        self.agent = cluster.agents[0]
        with self.agent.client() as client:
            client.register("f", pids=[app.pid], sandbox_id="b1", tenant=BANK)
            client.dedup("b1")
        with cluster.controller_client() as controller:
            (record,) = controller.nodes()
        self.controller = cluster._listen
        self.peer = record.endpoints.grpc_address
        self.pages = record.endpoints.page_address
        self.metrics = ""

    def controller_stub(self, identity: Identity | None) -> ControllerServiceStub:
        return ControllerServiceStub(
            sync_channel(self.controller, identity, server_name=CONTROLLER_SERVER_NAME, timeout_s=5)
        )

    def peer_stub(self, identity: Identity | None) -> PeerServiceStub:
        return PeerServiceStub(
            sync_channel(self.peer, identity, server_name=node_server_name("n0"), timeout_s=5)
        )

    def read(self, token: bytes, identity: native.TlsIdentity | None) -> native.PageReader:
        name = node_server_name("n0") if identity else ""
        return native.tcp_reader(self.pages, token, attempts=1, identity=identity, server_name=name)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> object:
    with Cluster(tmp_path_factory.mktemp("world"), nodes=1) as cluster:
        app = App(4, 1)
        try:
            yield World(cluster, app)
        finally:
            app.close()


def tried(world: World, identity: Identity | None, name: str) -> list[object]:
    """Everything that the steal of another tenant's memory needs, in order; what each step gave (or its error)."""
    out: list[object] = []
    controller, peer = world.controller_stub(identity), world.peer_stub(identity)
    for call in (
        lambda: controller.ListSandboxes(controller_pb2.ListSandboxesRequest()),
        lambda: controller.ListNodes(controller_pb2.ListNodesRequest()),
        lambda: controller.LookupFingerprints(
            controller_pb2.LookupFingerprintsRequest(
                node_id=name, domain=BANK, samples_per_page=8, hashes=bytes(64)
            )
        ),
        lambda: peer.OpenPages(peer_pb2.OpenPagesRequest(node_id=name, domain=BANK)).token,
        lambda: peer.Pin(peer_pb2.PinRequest(node_id=name, holder_id="h", domain=BANK, base_ids=[1])),
    ):
        try:
            out.append(call())
        except MedesError as error:
            out.append(error)
    pem = identity.pem if identity else None
    try:
        world.read(bytes(32), shown(pem) if pem else None).close()
        out.append("pages open")
    except MedesError as error:
        out.append(error)
    return out


def all_refused(results: list[object]) -> bool:
    return all(isinstance(r, MedesError) for r in results)


# --- a function's code, another user of the machine, a stranger on the network -------------------------------
def test_without_a_certificate_nothing_answers(world: World) -> None:
    assert all_refused(tried(world, None, "evil"))


def test_another_user_of_the_machine_cannot_have_a_certificate(world: World) -> None:
    """As nobody, with the cluster folder named: the CA cannot be read, and no certificate can be made."""
    script = (
        "import os\nfrom medes.client import ControllerClient\nfrom medes.errors import MedesError\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try:\n    print(ControllerClient(os.environ['TARGET'], timeout_s=5).nodes())\n"
        "except MedesError as error:\n    print('refused', error.code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "TARGET": world.controller},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.strip() == "refused unauthenticated", (done.stdout, done.stderr)
    folder = Path(os.environ[VARIABLE])
    assert folder.stat().st_mode & 0o077 == 0


def test_noise_on_every_port_closes_that_connection_only(world: World) -> None:
    for address in (world.controller, world.peer, world.pages):
        host, _, port = address.rpartition(":")
        for data in (b"GET / HTTP/1.0\r\n\r\n", os.urandom(5000), b"\x16\x03\x01\xff\xff", b""):
            with socket.create_connection((host, int(port)), timeout=10) as connection:
                connection.settimeout(15)
                with contextlib.suppress(OSError):  # it may end before all is sent
                    connection.sendall(data)
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(65536):
                        pass
    assert (
        world.peer_stub(of_run("n7")).OpenPages(peer_pb2.OpenPagesRequest(node_id="n7", domain="mine")).token
    )


# --- certificates that are no good ----------------------------------------------------------------------------
@pytest.mark.parametrize("what", ["another cluster's", "expired"])
def test_a_bad_certificate_opens_nothing(world: World, tmp_path: Path, what: str) -> None:
    signer = Authority(tmp_path).authority if what == "another cluster's" else None
    party = Party(Role.NODE, "n1")
    if signer is None:
        from medes.certs.folder import cluster_folder, find_authority

        identity = IssuedIdentity(find_authority(cluster_folder()), party, days=-0.01)
    else:
        identity = IssuedIdentity(signer, party)
    assert all_refused(tried(world, identity, "n1"))


# --- a node of another tenant ---------------------------------------------------------------------------------
def test_a_node_that_is_kept_to_its_tenant_learns_nothing_of_others(world: World) -> None:
    from medes.certs.folder import cluster_folder, find_authority

    party = Party(Role.NODE, "shop-1", frozenset({"shop"}))
    results = tried(world, IssuedIdentity(find_authority(cluster_folder()), party), "shop-1")
    sandboxes, nodes, lookup, token, pin, pages = results
    assert isinstance(sandboxes, PermissionDeniedError)
    assert isinstance(nodes, controller_pb2.ListNodesResponse) and len(nodes.nodes) == 0
    assert isinstance(lookup, controller_pb2.LookupFingerprintsResponse) and len(lookup.bases) == 0
    assert isinstance(token, NotFoundError) and isinstance(pin, NotFoundError)
    assert isinstance(pages, UnauthenticatedError)


def test_a_node_speaks_for_no_other(world: World) -> None:
    stub = world.peer_stub(of_run("n1"))
    with pytest.raises(PermissionDeniedError, match="for another"):
        stub.OpenPages(peer_pb2.OpenPagesRequest(node_id="n0", domain=BANK))


@pytest.mark.parametrize("role", [Role.CONTROLLER, Role.OBSERVER, Role.RUNTIME])
def test_other_roles_get_no_pages(world: World, role: Role) -> None:
    with pytest.raises(PermissionDeniedError, match="not for the role"):
        world.peer_stub(of_run("n1", role)).OpenPages(peer_pb2.OpenPagesRequest(node_id="n1", domain=BANK))


# --- tokens ---------------------------------------------------------------------------------------------------
def test_a_token_that_was_overheard_is_worth_nothing(world: World) -> None:
    """Granted to n1, shown by n2: refused, while n1 reads on."""
    token = (
        world.peer_stub(of_run("n1")).OpenPages(peer_pb2.OpenPagesRequest(node_id="n1", domain=BANK)).token
    )
    with pytest.raises(UnauthenticatedError):
        world.read(token, shown(of_run("n2").pem))
    world.read(token, shown(of_run("n1").pem)).close()


def test_a_token_of_one_domain_reads_no_other(world: World, make_app: Callable[..., App]) -> None:
    token = (
        world.peer_stub(of_run("n1")).OpenPages(peer_pb2.OpenPagesRequest(node_id="n1", domain="shop")).token
    )
    reader = world.read(token, shown(of_run("n1").pem))
    slabs = [int(p.stem.rpartition("-")[2], 16) for p in world.agent.shm.glob("base-*")]
    assert slabs, "the node holds a base of the bank's"
    assert {status for base in slabs for status, _ in reader.read_batch([(base, 0, 4096)])} == {"not_found"}
    reader.close()


# --- a controller that is none --------------------------------------------------------------------------------
def test_a_node_cannot_stand_in_for_the_controller(
    world: World, make_cluster: Callable[..., Cluster]
) -> None:
    """A taken-over node listens where the controller was: agents do not speak to it."""
    from tests.support.fake_agent import FakeAgent
    from tests.support.served import served

    def add(server: object) -> None:
        from medes.rpc.gen.agent_pb2_grpc import add_AgentServiceServicer_to_server

        add_AgentServiceServicer_to_server(FakeAgent(), server)

    with served(add, "127.0.0.1:0", of_run("n9")) as address:
        stub = ControllerServiceStub(
            sync_channel(address, of_run("n0"), server_name=CONTROLLER_SERVER_NAME, timeout_s=5)
        )
        with pytest.raises(MedesError, match="Hostname Verification"):
            stub.JoinNode(controller_pb2.JoinNodeRequest())
