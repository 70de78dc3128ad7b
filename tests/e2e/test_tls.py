"""gRPC over TLS: both sides verified with a CA, and everyone else refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from medes.rpc.gen import controller_pb2 as pb
from medes.rpc.gen.agent_pb2_grpc import add_AgentServiceServicer_to_server

from medes.client import ControllerClient, MedesClient
from medes.config import ControllerSettings, load
from medes.errors import (
    AgentUnreachableError,
    ControllerUnreachableError,
    InvalidArgumentError,
    IoError,
    PermissionDeniedError,
)
from medes.rpc.server import RpcServer
from medes.rpc.tls import TlsFiles, server_credentials
from tests.support.certificates import Authority
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
        lambda s: add_AgentServiceServicer_to_server(FakeAgent(), s), "127.0.0.1:0", ca.issue("agent")
    ) as address:
        yield address


def test_a_signed_client_is_served(mutual: str, ca: Authority) -> None:
    with MedesClient(mutual, tls=ca.issue("client")) as medes:
        assert medes.node().node_id == "fake"
    with MedesClient(mutual, tls=replace(ca.issue("client"), server_name="agent")) as medes:
        assert medes.node().node_id == "fake"


def test_others_are_refused(mutual: str, ca: Authority, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    foreign = replace(Authority(tmp_path / "other", "other-ca").issue("client"), ca=str(ca.ca))
    no_certificate = TlsFiles(ca=str(ca.ca))
    wrong_name = replace(ca.issue("client"), server_name="somebody-else")
    wrong_ca = replace(ca.issue("client"), ca=str(tmp_path / "other" / "other-ca.pem"))
    for tls in (foreign, no_certificate, wrong_name, wrong_ca, None):
        with MedesClient(mutual, tls=tls, timeout_s=5) as medes, pytest.raises(AgentUnreachableError):
            medes.node()


def test_server_only_tls(ca: Authority) -> None:
    server = replace(ca.issue("agent"), ca="")
    with (
        served(
            lambda s: add_AgentServiceServicer_to_server(FakeAgent(), s), "127.0.0.1:0", server
        ) as address,
        MedesClient(address, tls=TlsFiles(ca=str(ca.ca))) as medes,
    ):
        assert medes.node().node_id == "fake"


def test_a_controller_with_mtls(ca: Authority) -> None:
    files = ca.issue("controller")
    flags = (
        "--tls-certificate",
        files.certificate,
        "--tls-private-key",
        files.private_key,
        "--tls-ca",
        files.ca,
    )
    with controller(*flags) as process:
        with ControllerClient(process.address, tls=ca.issue("cli")) as client:
            assert client.nodes() == []
        with (
            ControllerClient(process.address, timeout_s=5) as client,
            pytest.raises(ControllerUnreachableError),
        ):
            client.nodes()


def test_files_are_checked(tmp_path: Path, ca: Authority) -> None:
    good = ca.issue("x")
    (tmp_path / "text").write_text("no certificate")
    assert server_credentials(TlsFiles()) is None
    for tls, error in (
        (replace(good, private_key=""), InvalidArgumentError),
        (TlsFiles(ca=good.ca), InvalidArgumentError),
        (replace(good, certificate=str(tmp_path / "none")), IoError),
        (replace(good, ca=str(tmp_path / "text")), InvalidArgumentError),
    ):
        with pytest.raises(error):
            server_credentials(tls)


async def test_a_unix_socket_needs_no_tls(tmp_path: Path, ca: Authority) -> None:
    server = RpcServer()
    server.bind(f"unix:{tmp_path}/s.sock", ca.issue("agent"))
    await server.start()
    await server.stop(0)


async def test_a_node_speaks_only_for_the_names_in_its_certificate(ca: Authority) -> None:
    files = ca.issue("controller")
    flags = (
        "--tls-certificate",
        files.certificate,
        "--tls-private-key",
        files.private_key,
        "--tls-ca",
        files.ca,
    )
    with controller(*flags, "--node-certificates") as process:
        honest = FakeNode("n1", process.address, ca.issue("n1"))
        honest.bases[1] = 3
        await honest.join()
        assert [b.base_id for b in (await honest.lookup(1, 3)).bases] == [1]
        liar = FakeNode("n1", process.address, ca.issue("n2"))
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
            with pytest.raises(PermissionDeniedError, match="for another node"):
                await call
        assert (await honest.client.statistics()).bases == 1
        await honest.close()
        await liar.close()


def test_node_certificates_need_a_ca() -> None:
    with pytest.raises(InvalidArgumentError, match="client certificates"):
        load(ControllerSettings, flags={"node_certificates": True}, environment={})


def test_a_key_that_is_not_the_certificates(ca: Authority, tmp_path: Path) -> None:
    """On both sides, and in words: not "cannot listen", not "cannot connect"."""
    mixed = replace(ca.issue("agent"), private_key=ca.issue("client").private_key)
    with pytest.raises(InvalidArgumentError, match=f"{mixed.private_key}: is not the key of the certificate"):
        server_credentials(mixed)
    with pytest.raises(InvalidArgumentError, match="is not the key of the certificate"):
        MedesClient("127.0.0.1:1", tls=mixed)
    empty = tmp_path / "empty.pem"
    empty.write_text("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n")
    with pytest.raises(InvalidArgumentError, match="holds no CA"):
        MedesClient("127.0.0.1:1", tls=TlsFiles(ca=str(empty)))
