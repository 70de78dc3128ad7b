"""Where base pages come from and who may have them: transports, attribution, streams, domains of peers."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from medes import native
from medes.agent import daemon as daemon_module
from medes.agent.api import handlers
from medes.agent.api.registration import Registration
from medes.agent.daemon import AgentDaemon
from medes.agent.ops import page_sources
from medes.agent.peer_api import page_leases, peer_handlers
from medes.agent.peer_api.fingerprint_service import FingerprintService
from medes.agent.peer_api.peer_handlers import PageAccessTable
from medes.agent.peer_client import PageAccess
from medes.certs.parties import Role, node_server_name
from medes.cli.sandbox import cli
from medes.config import AgentSettings, PeerOverrides
from medes.controller.process import Controller
from medes.errors import InvalidArgumentError, MedesError, NotFoundError, PeerUnreachableError
from medes.transport.choice import Transports
from medes.transport.tcp.streams import automatic_streams
from medes.types import NodeEndpoints, Note, NoteCode
from medes.types import SandboxState as S
from tests.support.certificates import Authority, shown_as
from tests.support.counter_app import App
from tests.unit.agent.conftest import MakeAgent

MakeApp = Callable[..., App]


async def dedup(daemon: AgentDaemon, app: App, sandbox_id: str, *, make_base: bool = False) -> Any:
    await handlers.register(daemon.agent, Registration(sandbox_id=sandbox_id, function="f", pids=(app.pid,)))
    return (await handlers.dedup(daemon.agent, sandbox_id, make_base=make_base)).report


def metric(daemon: AgentDaemon, name: str, transport: str) -> float:
    return daemon.registry.get_sample_value(name, {"transport": transport}) or 0.0


# --- attribution -------------------------------------------------------------------------------------------
async def test_pages_are_booked_to_what_carried_them_with_mixed_peers(
    make_agent: MakeAgent, make_app: MakeApp, controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two holders, reached in two ways (a mapped slab stands in for the second way)."""
    one = await make_agent("n0", controller.address)
    other = await make_agent("n1", controller.address)
    user = await make_agent("n2", controller.address)
    await dedup(one, make_app(seed=1), "a")
    await dedup(other, make_app(seed=2), "b", make_base=True)
    assert len(other.agent.bases.bases) == 1
    over_tcp = user.agent.peers._make_reader

    def make_reader(peer: NodeEndpoints, access: PageAccess, wake: int) -> native.PageReader:
        if peer.node_id == "n1":
            return native.local_reader([b.slab for b in other.agent.bases.bases.values()])
        return over_tcp(peer, access, wake)

    monkeypatch.setattr(user.agent.peers, "_make_reader", make_reader)
    report = await dedup(user, make_app(seed=2), "c")
    pages = report.pages_by_transport
    assert set(pages) == {"tcp+tls", "local"} and min(pages.values()) > 0
    assert sum(pages.values()) == report.remote_pages_read
    (reader, _), (mapped, _) = (user.agent.peers._readers[node, "default"] for node in ("n0", "n1"))
    assert pages["tcp+tls"] <= reader.bytes_by_transport["tcp+tls"] // native.PAGE_BYTES + 1
    assert pages["local"] <= mapped.bytes_by_transport["local"] // native.PAGE_BYTES + 1
    name = "medes_agent_base_pages_read_total"
    assert {t: metric(user, name, t) for t in pages} == pages
    assert handlers.node_status(user.agent).pages_read_by_transport == pages
    assert handlers.get(user.agent, "c").transport_by_peer == {"n0": "tcp+tls", "n1": "local"}


def test_pages_since_leave_out_what_was_read_before() -> None:
    class Bases:
        remote_pages_by_transport = {"rdma": 10, "tcp": 4}  # noqa: RUF012

    bases: Any = Bases()
    assert page_sources.pages_since(bases, {"rdma": 10}) == {"tcp": 4}
    assert page_sources.pages_since(bases, {"rdma": 7, "tcp+tls": 3}) == {"rdma": 3, "tcp": 4}


# --- own bases ---------------------------------------------------------------------------------------------
async def test_own_bases_are_shown_as_local(
    make_agent: MakeAgent, make_app: MakeApp, controller: Controller
) -> None:
    daemon = await make_agent("n0", controller.address)
    await dedup(daemon, make_app(seed=1), "a")
    assert handlers.get(daemon.agent, "a").transport_by_peer == {"n0": "local"}
    assert metric(daemon, "medes_agent_base_sources", "local") == 1
    assert metric(daemon, "medes_agent_base_sources", "tcp") == 0

    def listing() -> str:
        flags = ["ls", "--agent", daemon.settings.listen]
        return CliRunner().invoke(cli, flags, catch_exceptions=False, env={"COLUMNS": "250"}).output

    assert "n0 (local)" in await daemon.agent.in_ops(listing)
    await handlers.restore(daemon.agent, "a", eager=True)
    assert handlers.get(daemon.agent, "a").transport_by_peer == {}
    assert metric(daemon, "medes_agent_base_sources", "local") == 0


async def test_transport_local_reads_no_page_of_another_node(
    make_agent: MakeAgent, make_app: MakeApp, controller: Controller
) -> None:
    holder = await make_agent("n0", controller.address)
    user = await make_agent("n1", controller.address, transport="local")
    await dedup(holder, make_app(seed=1), "a")
    report = await dedup(user, make_app(seed=2), "b")
    assert report.remote_pages_read == 0 and report.pages_by_transport == {}
    assert report.base_bytes_added > 0, "others' bases do not count: it makes its own"
    assert Note(NoteCode.OWN_BASES_ONLY, "the transport is local: own bases only") in report.notes
    assert user.agent.peers._readers == {}
    assert (await dedup(user, make_app(seed=3), "c")).base_bytes_added == 0
    user.agent.peers.learn(holder.agent.endpoints)
    with pytest.raises(PeerUnreachableError, match="transport is local"):
        await user.agent.peers.reader("n0", "default")


async def test_a_sandbox_that_needs_another_node_waits_under_transport_local(
    make_agent: MakeAgent, make_app: MakeApp, controller: Controller
) -> None:
    """As after a restart with the setting changed: refused, and nothing is lost."""
    holder = await make_agent("n0", controller.address)
    user = await make_agent("n1", controller.address)
    await dedup(holder, make_app(seed=1), "a")
    assert (await dedup(user, make_app(seed=2), "b")).remote_pages_read > 0
    evicted = user.agent.entry("b").evicted
    assert evicted is not None
    evicted.live = None
    user.agent.peers._own_only = True
    with pytest.raises(PeerUnreachableError, match="transport is local"):
        await handlers.restore(user.agent, "b")
    assert handlers.get(user.agent, "b").state is S.DEDUP
    user.agent.peers._own_only = False
    await handlers.restore(user.agent, "b", eager=True)
    assert handlers.get(user.agent, "b").state is S.WARM


# --- streams -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("setting", "streams"), [(0, automatic_streams(8)), (3, 3)])
def test_readers_get_the_streams_of_the_setting(
    monkeypatch: pytest.MonkeyPatch, setting: int, streams: int
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(native, "tcp_reader", lambda *a, streams, **more: asked.append(streams))
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))
    make = daemon_module._reader_factory(AgentSettings(page_streams=setting), None)
    make(NodeEndpoints("n0"), PageAccess(bytes(32), "127.0.0.1:1"), -1)
    assert asked == [streams]


def test_automatic_streams_are_one_on_small_machines_and_bounded_on_large_ones() -> None:
    assert [automatic_streams(n) for n in (1, 2, 4, 7, 8, 12, 16, 256)] == [1, 1, 1, 1, 2, 3, 4, 4]


# --- domains of peers --------------------------------------------------------------------------------------
def pages_of(daemon: AgentDaemon) -> PageAccessTable:
    assert daemon._pages is not None
    return daemon._pages


def good_token(daemon: AgentDaemon, node_id: str) -> bytes:
    return pages_of(daemon).tokens.good(node_id, "default")[0].token


def connects(node_id: str, access: PageAccess) -> bool:
    identity, holder = shown_as(node_id), node_server_name("n0")
    try:
        native.tcp_reader(
            access.page_address, access.token, attempts=1, identity=identity, server_name=holder
        ).close()
    except Exception:
        return False
    return True


async def test_a_node_gets_no_pin_and_no_token_of_a_domain_it_may_not_read(
    make_agent: MakeAgent, make_app: MakeApp
) -> None:
    daemon = await make_agent(
        "n0",
        peer_domains="other",
        peers={"friend": PeerOverrides("default, other"), "nobody": PeerOverrides("")},
    )
    await dedup(daemon, make_app(), "a")
    (base_id,) = daemon.agent.bases.bases
    pages = pages_of(daemon)
    fingerprints = FingerprintService(daemon.agent)

    async def refusal(node: str, domain: str, base_id: int) -> str:
        with pytest.raises(NotFoundError) as error:
            await peer_handlers.pin(daemon.agent, node, "h", domain, [base_id])
        return str(error.value)

    for node in ("stranger", "nobody"):
        unknown = await refusal("friend", "default", 7)
        assert await refusal(node, "default", 7) == unknown, (
            "the answer does not tell whether the base exists"
        )
        assert (await refusal(node, "default", base_id)).replace(f"{base_id:016x}", f"{7:016x}") == unknown
        for domain in ("default", "does not exist"):
            with pytest.raises(NotFoundError, match="no such base"):
                pages.open(node, domain)
        with pytest.raises(NotFoundError, match="no such base"):
            await anext(fingerprints.parts(node, "default", base_id, 8))
        pins = {"h": ("default", [base_id])}
        assert await peer_handlers.reconcile(daemon.agent, node, pins) == [base_id]
        assert not connects(node, PageAccess(good_token(daemon, node), pages.address))
    assert daemon.agent.pins.count(base_id) == 1, "its own sandbox's"
    assert connects("stranger", pages.open("stranger", "other"))
    with pytest.raises(NotFoundError):
        pages.open("nobody", "other")
    assert connects("friend", pages.open("friend", "default"))
    await peer_handlers.pin(daemon.agent, "friend", "h", "default", [base_id])
    assert daemon.agent.pins.count(base_id) == 2
    assert await anext(fingerprints.parts("friend", "default", base_id, 8))


async def test_a_domain_taken_from_a_node_is_not_granted_again_after_a_restart(
    make_agent: MakeAgent, make_app: MakeApp
) -> None:
    daemon = await make_agent("n0")
    await dedup(daemon, make_app(), "a")
    (base_id,) = daemon.agent.bases.bases
    await peer_handlers.pin(daemon.agent, "n1", "h", "default", [base_id])
    for peers, granted in (({}, True), ({"n1": PeerOverrides("other")}, False)):
        await daemon.stop()
        daemon = await make_agent("n0", peers=peers)
        access = PageAccess(good_token(daemon, "n1"), pages_of(daemon).address)
        assert connects("n1", access) == granted


def test_domains_by_node() -> None:
    everyone = AgentSettings()
    assert everyone.may_read("n1", "any")
    some = AgentSettings(peer_domains="a, b", peers={"n1": PeerOverrides("*"), "n2": PeerOverrides()})
    asked = [some.may_read(node, domain) for node in ("n1", "n2", "n3") for domain in ("a", "c")]
    assert asked == [True, True, True, False, True, False]
    some.check()
    with pytest.raises(InvalidArgumentError, match="any name"):
        replace(some, insecure_plaintext=True).check()
    with pytest.raises(InvalidArgumentError, match="not a name"):
        AgentSettings(peer_domains="a, b c").check()


# --- plaintext ---------------------------------------------------------------------------------------------
async def test_plaintext_is_a_setting_of_its_own_and_loud(
    make_agent: MakeAgent, caplog: pytest.LogCaptureFixture
) -> None:
    daemon = await make_agent("n0", insecure_plaintext=True)
    assert [r.levelno for r in caplog.records if "INSECURE" in r.message] == [logging.ERROR]
    reader = native.tcp_reader(pages_of(daemon).address, pages_of(daemon).open("n1", "d").token, attempts=1)
    assert reader.transport == "tcp"
    reader.close()


async def test_by_default_nothing_is_plain(make_agent: MakeAgent, caplog: pytest.LogCaptureFixture) -> None:
    daemon = await make_agent("n0", peer_address="0.0.0.0:0", page_host="0.0.0.0", controller="")
    assert "INSECURE" not in caplog.text
    token = pages_of(daemon).open("n1", "d").token
    with pytest.raises(MedesError):
        native.tcp_reader(pages_of(daemon).address.replace("0.0.0.0", "127.0.0.1"), token, attempts=1)


async def test_a_certificate_for_another_node_is_refused_at_the_start(
    make_agent: MakeAgent, tmp_path: Path
) -> None:
    ca = Authority(tmp_path)
    for files in (ca.issue("n1"), ca.issue("n0", Role.OBSERVER)):
        with pytest.raises(InvalidArgumentError, match="this is node n0"):
            await make_agent("n0", tls=files)
    await make_agent("n0", tls=ca.issue("n0"))


# --- what transports were told of bases --------------------------------------------------------------------
class Told:
    """The part of a transport that is told what is still read."""

    def __init__(self) -> None:
        self.kept: list[tuple[str, set[int]]] = []

    def keep_bases(self, node_id: str, base_ids: set[int]) -> None:
        self.kept.append((node_id, set(base_ids)))


async def test_transports_may_forget_bases_that_nobody_pins_any_more(
    make_agent: MakeAgent, make_app: MakeApp, controller: Controller
) -> None:
    holder = await make_agent("n0", controller.address)
    user = await make_agent("n1", controller.address)
    await dedup(holder, make_app(seed=1), "a")
    await dedup(user, make_app(seed=2), "b")
    (base_id,) = holder.agent.bases.bases
    told: Any = Told()
    before, user.agent.peers._transports = user.agent.peers._transports, Transports((told,))
    try:
        user.agent.peers.forget_bases(lambda node: page_leases.pinned_at(user.agent, node))
        user.agent.pins_of_ops["op under way"] = ("default", {"n0": [77]})
        user.agent.peers.forget_bases(lambda node: page_leases.pinned_at(user.agent, node))
        user.agent.pins_of_ops.clear()
        await handlers.restore(user.agent, "b", eager=True)
        user.agent.peers.forget_bases(lambda node: page_leases.pinned_at(user.agent, node))
    finally:
        user.agent.peers._transports = before
    assert told.kept == [("n0", {base_id}), ("n0", {base_id, 77}), ("n0", set())]
