"""Page tokens have a life: which are good when, and how an agent gets the next one while it reads."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from medes.agent.api import handlers
from medes.agent.api.registration import Registration
from medes.agent.daemon import AgentDaemon
from medes.agent.peer_api import peer_handlers
from medes.agent.peer_api.page_tokens import PageTokens
from medes.config import AgentSettings
from medes.controller.process import Controller
from medes.errors import InvalidArgumentError, PeerUnreachableError
from tests.support.counter_app import App
from tests.unit.agent.conftest import MakeAgent
from tests.unit.agent.ops.test_agent_ops import until
from tests.unit.agent.ops.test_page_sources import connects

MakeApp = Callable[..., App]
SECRET = bytes(range(32))


class Calendar:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_the_present_and_the_previous_token_are_good_and_no_other() -> None:
    calendar = Calendar()
    tokens = PageTokens(SECRET, 100.0, calendar)
    first, _ = tokens.good("n1", "d")
    assert first.valid_s == 200.0
    calendar.now_s += 130
    second, previous = tokens.good("n1", "d")
    assert (previous.token, previous.valid_s) == (first.token, 70.0)
    assert (second.token != first.token, second.valid_s) == (True, 170.0)
    calendar.now_s += 70
    assert first.token not in {t.token for t in tokens.good("n1", "d")}
    assert PageTokens(SECRET, 100.0, calendar).good("n1", "d") == tokens.good("n1", "d"), "after a restart"


def test_tokens_are_of_one_node_domain_and_secret() -> None:
    calendar = Calendar()
    made = {
        t.token
        for secret in (SECRET, SECRET[::-1])
        for node, domain in (("n1", "d"), ("n1", "e"), ("n2", "d"), ("n", "1d"))
        for t in PageTokens(secret, 100.0, calendar).good(node, domain)
    }
    assert len(made) == 16


@pytest.mark.parametrize("life_s", [0.5, 90000.0])
def test_the_life_is_bounded(life_s: float) -> None:
    with pytest.raises(InvalidArgumentError, match="page_token_s"):
        AgentSettings(page_token_s=life_s).check()


class Pair:
    """A holder of a base and a node whose sandbox reads from it."""

    def __init__(self, holder: AgentDaemon, user: AgentDaemon) -> None:
        assert holder._pages is not None
        self.pages, self.user = holder._pages, user
        self.calendar = Calendar()
        self.pages.tokens = PageTokens(SECRET, 100.0, self.calendar)

    @property
    def token(self) -> bytes:
        _, access = self.user.agent.peers._readers["n0", "default"]
        return access.token

    async def restored(self) -> None:
        report = (await handlers.restore(self.user.agent, "b", eager=True)).report
        assert report is not None and report.was_dedup


@pytest.fixture
async def pair(make_agent: MakeAgent, make_app: MakeApp, controller: Controller) -> Pair:
    holder, user = await make_agent("n0", controller.address), await make_agent("n1", controller.address)
    pair = Pair(holder, user)
    for daemon, name, seed in ((holder, "a", 1), (user, "b", 2)):
        registration = Registration(sandbox_id=name, function="f", pids=(make_app(seed=seed).pid,))
        await handlers.register(daemon.agent, registration)
        await handlers.dedup(daemon.agent, name)
    return pair


async def test_a_reader_renews_in_time_over_a_new_connection(pair: Pair) -> None:
    first = pair.token
    pair.calendar.now_s += 100
    pair.user.agent.peers.renewal.granted(("n0", "default"), 0.001)
    await until(lambda: pair.token != first, "a new token")
    reader, _ = pair.user.agent.peers._readers["n0", "default"]
    await until(lambda: reader.stats()["reconnects"] > 0, "a new connection")
    await pair.restored()
    assert pair.pages.stats()["refused"] == 0


async def test_a_late_reader_is_told_and_no_restore_fails(pair: Pair) -> None:
    """As after a long stop: its token ended, its connection too, and nothing has asked for the next one."""
    first = pair.token
    for good in pair.pages.tokens.good("n1", "default"):
        pair.pages._server.revoke(good.token)
    pair.calendar.now_s += 500
    await pair.restored()
    assert pair.token != first
    assert pair.pages.stats()["refused_tokens"] > 0


async def test_connections_are_made_anew_with_the_same_token_when_certificates_change(pair: Pair) -> None:
    reader, _ = pair.user.agent.peers._readers["n0", "default"]
    for times in (1, 2):
        pair.user.agent.peers.renewal.reconnect_all()
        pair.user.agent.peers.renewal.reconnect_all()
        await until(lambda n=times: reader.stats()["reconnects"] >= n, "a new connection")
    await pair.restored()


async def test_an_error_that_nobody_foresaw_is_logged_and_tried_again(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    renewal = pair.user.agent.peers.renewal

    async def broken(key: tuple[str, str]) -> object:
        raise RuntimeError("a bug")

    monkeypatch.setattr(renewal, "_ask", broken)
    renewal.reconnect_all()
    await until(lambda: "a bug" in caplog.text, "it is logged")
    await until(lambda: not renewal._under_way, "its end")
    assert renewal._due_s["n0", "default"] < float("inf")


async def test_a_holder_that_is_away_is_asked_again(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    peers = pair.user.agent.peers
    asked = 0
    ask = peers._open

    async def away_twice(key: tuple[str, str]) -> object:
        nonlocal asked
        asked += 1
        if asked < 3:
            raise PeerUnreachableError("away", object=key[0])
        return await ask(key)

    monkeypatch.setattr(peers, "_open", away_twice)
    first = pair.token
    pair.calendar.now_s += 100
    peers.renewal.granted(("n0", "default"), 0.001)
    await until(lambda: pair.token != first, "a new token")
    assert asked == 3


async def test_an_older_holders_token_is_not_renewed(pair: Pair) -> None:
    pair.user.agent.peers.renewal.granted(("n0", "default"), 0.0)
    assert pair.user.agent.peers.renewal._due_s["n0", "default"] == float("inf")


async def test_a_token_ends_although_its_node_has_pins_here(make_agent: MakeAgent, make_app: MakeApp) -> None:
    daemon = await make_agent("n0", page_token_s=1.0)
    await handlers.register(daemon.agent, Registration(sandbox_id="a", function="f", pids=(make_app().pid,)))
    await handlers.dedup(daemon.agent, "a")
    (base_id,) = daemon.agent.bases.bases
    await peer_handlers.pin(daemon.agent, "n1", "h", "default", [base_id])
    assert daemon._pages is not None
    access = daemon._pages.open("n1", "default")
    assert access.valid_s <= 2.0 and connects("n1", access)
    await until(lambda: not connects("n1", access), "its end")
    assert connects("n1", daemon._pages.open("n1", "default"))
