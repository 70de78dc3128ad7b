"""gRPC over TLS: both sides verified with a CA, each for who it is, and everyone else refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from medes.rpc.gen import controller_pb2 as pb
from medes.rpc.gen.agent_pb2_grpc import add_AgentServiceServicer_to_server

from medes.certs.folder import VARIABLE
from medes.certs.identity import FileIdentity
from medes.certs.parties import Role
from medes.client import ControllerClient, MedesClient
from medes.errors import (
    AgentUnreachableError,
    ControllerUnreachableError,
    InvalidArgumentError,
    IoError,
    MedesError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from medes.rpc.server import RpcServer
from medes.rpc.tls import PLAINTEXT, TlsFiles
from tests.support.certificates import Authority, of_run
from tests.support.controller_process import controller
from tests.support.fake_agent import FakeAgent
from tests.support.fake_node import FakeNode
from tests.support.served import served


@pytest.fixture
def ca(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def mutual(ca: Authority) -> Iterator[str]:
    with served(
        lambda s: add_AgentServiceServicer_to_server(FakeAgent(), s),
        "127.0.0.1:0",
        FileIdentity(ca.issue("agent")),
    ) as address:
        yield address


def test_a_signed_client_is_served(mutual: str, ca: Authority) -> None:
    files = ca.issue("client", Role.RUNTIME)
    with MedesClient(mutual, tls=files) as medes:
        assert medes.node().node_id == "fake"
    with MedesClient(mutual, tls=replace(files, server_name="agent.node.medes")) as medes:
        assert medes.node().node_id == "fake"


def test_others_are_refused(mutual: str, ca: Authority, tmp_path: Path) -> None:
    foreign = Authority(tmp_path / "other")
    wrong_name = replace(ca.issue("client", Role.RUNTIME), server_name="somebody-else")
    expired = ca.issue("late", Role.RUNTIME, days=-0.01)
    of_run("anybody")  # so that there is a CA in the cluster folder, and it is not this one
    for tls in (foreign.issue("client", Role.RUNTIME), wrong_name, expired, None, PLAINTEXT):
        with MedesClient(mutual, tls=tls, timeout_s=5) as medes, pytest.raises(AgentUnreachableError):
            medes.node()


def test_files_are_checked(tmp_path: Path, ca: Authority) -> None:
    good, other = ca.issue("x"), ca.issue("y")
    (tmp_path / "text").write_text("no certificate")
    foreign = Authority(tmp_path / "other").issue("x")
    for tls, error in (
        (replace(good, private_key=""), InvalidArgumentError),
        (TlsFiles(ca=good.ca), InvalidArgumentError),
        (replace(good, certificate=str(tmp_path / "none")), IoError),
        (replace(good, ca=str(tmp_path / "text")), InvalidArgumentError),
        (replace(good, private_key=other.private_key), InvalidArgumentError),
        (replace(good, ca=foreign.ca), InvalidArgumentError),
    ):
        with pytest.raises(error):
            FileIdentity(tls)


async def test_a_unix_socket_needs_no_tls(tmp_path: Path, ca: Authority) -> None:
    server = RpcServer()
    server.bind(f"unix:{tmp_path}/s.sock", FileIdentity(ca.issue("agent")))
    await server.start()
    await server.stop(0)


async def test_a_node_speaks_only_for_the_name_in_its_certificate() -> None:
    with controller() as process:
        honest = FakeNode("n1", process.address)
        honest.bases[1] = 3
        await honest.join()
        assert [b.base_id for b in (await honest.lookup(1, 3)).bases] == [1]
        liar = FakeNode("n1", process.address, of_run("n2"))
        stub = liar.client.stub
        for call in (
            liar.join(),
            liar.beat(),
            liar.publish(2, 3),
            liar.lookup(1, 3),
            stub.RetireBase(pb.RetireBaseRequest(base_id=1, node_id="n1")),
            stub.LeaveNode(pb.LeaveNodeRequest(node_id="n1")),
            stub.AnnounceSandboxes(pb.AnnounceSandboxesRequest(node_id="n1", full=True)),
            stub.AdviseBase(pb.AdviseBaseRequest(node_id="n1", function="f", domain="d", sandbox_id="s")),
        ):
            with pytest.raises(PermissionDeniedError, match="for another"):
                await call
        with ControllerClient(process.address) as observer:
            assert observer.statistics().bases == 1
        await honest.close()
        await liar.close()


@pytest.mark.parametrize("role", Role)
def test_a_role_opens_only_what_it_needs(role: Role) -> None:
    """Every call with every role: node calls for nodes, looking for observers, and nothing else."""
    looks = {"ListNodes", "ListSandboxes", "GetStatistics"}
    service = pb.DESCRIPTOR.services_by_name["ControllerService"]
    with controller() as process, ControllerClient(process.address, tls=of_run("n1", role)) as client:
        for method in service.methods:
            wanted = method.name in looks if role is Role.OBSERVER else role is Role.NODE
            if role is Role.NODE and method.name in looks - {"ListNodes"}:
                wanted = False
            request = getattr(pb, method.input_type.name)()
            refusal = ""
            try:
                getattr(client.stub, method.name)(request)
            except MedesError as error:
                refusal = str(error)
            assert ("not for the role" not in refusal) == wanted, (method.name, refusal)


def test_a_certificate_of_the_ca_that_names_nobody_is_refused(tmp_path: Path) -> None:
    """Another service's certificate of a CA that signs more than this cluster."""
    from cryptography import x509

    ca = Authority(tmp_path)
    builder = x509.CertificateBuilder
    original = builder.add_extension

    def without_uris(self: x509.CertificateBuilder, extension: x509.ExtensionType, critical: bool) -> object:
        if isinstance(extension, x509.SubjectAlternativeName):
            extension = x509.SubjectAlternativeName([x509.DNSName("web.example")])
        return original(self, extension, critical)

    server = ca.issue("controller", Role.CONTROLLER)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "add_extension", without_uris)
        nobody = ca.issue("web", Role.OBSERVER)
    flags = (
        f"--tls-certificate={server.certificate}",
        f"--tls-private-key={server.private_key}",
        f"--tls-ca={server.ca}",
    )
    with (
        controller(*flags) as process,
        ControllerClient(process.address, tls=nobody) as client,
        pytest.raises(UnauthenticatedError, match="names no party"),
    ):
        client.nodes()


def test_a_node_cannot_pose_as_the_controller(ca: Authority) -> None:
    """Its certificate is good, and for this address; but clients ask for the controller."""
    with (
        served(
            lambda s: add_AgentServiceServicer_to_server(FakeAgent(), s), "127.0.0.1:0", of_run("n1")
        ) as address,
        ControllerClient(address, timeout_s=5) as client,
        pytest.raises(ControllerUnreachableError),
    ):
        client.nodes()


def test_without_a_certificate_a_client_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "none"))
    with pytest.raises(UnauthenticatedError, match="medes certs issue"):
        ControllerClient("127.0.0.1:7070")


def test_plaintext_needs_its_setting_on_both_sides() -> None:
    with controller("--insecure-plaintext") as process:
        with ControllerClient(process.address, tls=PLAINTEXT) as client:
            assert client.nodes() == []
        with ControllerClient(process.address, timeout_s=5) as client, pytest.raises(MedesError):
            client.nodes()
        _, log = process.end()
        assert "INSECURE" in log


def test_a_key_that_is_not_the_certificates(ca: Authority, tmp_path: Path) -> None:
    """In words: not "cannot listen", not "cannot connect"."""
    mixed = replace(ca.issue("agent"), private_key=ca.issue("client").private_key)
    with pytest.raises(InvalidArgumentError, match=f"{mixed.private_key}: is not the key of the certificate"):
        MedesClient("127.0.0.1:1", tls=mixed)
    empty = tmp_path / "empty.pem"
    empty.write_text("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n")
    with pytest.raises(InvalidArgumentError, match="holds no CA"):
        MedesClient("127.0.0.1:1", tls=replace(ca.issue("other"), ca=str(empty)))
