"""Two nodes: what a dedup op learns of another node's base, and what becomes of it when the base or its node goes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from medes import native
from medes.agent.api import handlers
from medes.agent.api.registration import Registration
from medes.agent.controller_client import Joined, Lookup
from medes.agent.daemon import AgentDaemon
from medes.agent.ops import candidates
from medes.agent.ops.base_op import retire_base
from medes.controller.process import Controller
from medes.types import DedupReport
from medes.types import SandboxState as S
from tests.support.counter_app import App
from tests.unit.agent.conftest import MakeAgent
from tests.unit.agent.ops.test_agent_ops import until

MakeApp = Callable[..., App]

MEGABYTES = 16


@pytest.fixture(autouse=True)
def small_instances_count_as_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to a fifth of so small an instance's pages is its own; the controller would be asked for those each time."""
    monkeypatch.setattr(candidates, "UNMATCHED_RATIO_MIN", 0.4)


class Node:
    """An agent whose lookups at the controller are counted."""

    def __init__(self, daemon: AgentDaemon, make_app: MakeApp) -> None:
        self.daemon = daemon
        self.agent = daemon.agent
        self._make_app = make_app
        self.lookups = 0
        ask = self.agent.controller.lookup

        async def counted(domain: str, hashes: bytes, samples_per_page: int) -> Lookup:
            self.lookups += 1
            return await ask(domain, hashes, samples_per_page)

        self.agent.controller.lookup = counted  # type: ignore[method-assign]

    @property
    def learnt(self) -> list[int]:
        return self.agent.remote_index.base_ids

    @property
    def only_base(self) -> int:
        (base_id,) = self.agent.bases.bases
        return base_id

    async def dedup(self, sandbox_id: str, seed: int = 1, **more: object) -> DedupReport:
        """Of a new sandbox."""
        registration = Registration(
            sandbox_id=sandbox_id, function="f", pids=(self._make_app(MEGABYTES, seed).pid,), **more
        )
        await handlers.register(self.agent, registration)
        return await self.dedup_again(sandbox_id)

    async def dedup_again(self, sandbox_id: str) -> DedupReport:
        result = await handlers.dedup(self.agent, sandbox_id)
        assert result.sandbox.state is S.DEDUP
        return result.report

    def looked_up(self, by: str) -> float:
        return self.daemon.registry.get_sample_value("medes_agent_lookups_total", {"by": by}) or 0.0


MakeNode = Callable[[str], Awaitable[Node]]


@pytest.fixture
def make_node(make_agent: MakeAgent, make_app: MakeApp, controller: Controller) -> MakeNode:
    async def make(name: str) -> Node:
        return Node(await make_agent(name, controller.address), make_app)

    return make


async def learn(holder: Node, user: Node) -> DedupReport:
    """The function's base lies at the holder and the user has learnt it; the report of the op that did."""
    await holder.dedup("a", 1)
    report = await user.dedup("b", 2)
    assert (user.lookups, report.remote_pages_read > 0) == (1, True)
    await until(lambda: user.learnt == [holder.only_base], "learnt")
    return report


async def test_later_ops_of_the_node_find_the_base_without_the_controller(make_node: MakeNode) -> None:
    holder, user = await make_node("n0"), await make_node("n1")
    first = await learn(holder, user)
    second = await user.dedup("c", 3)
    assert user.lookups == 1
    assert second.remote_pages_read > 0 and second.base_bytes_added == 0
    assert second.gross_saved_bytes > 0.9 * first.gross_saved_bytes
    assert holder.agent.pins.count(holder.only_base) == 3
    assert (user.looked_up("remote"), user.looked_up("controller")) == (1.0, 1.0)
    assert user.daemon.registry.get_sample_value("medes_agent_remote_index_bases") == 1.0
    used = user.daemon.registry.get_sample_value("medes_agent_remote_index_bytes")
    assert used == user.agent.remote_index.used_bytes > 0
    # The same sandbox again, most of which is taken over from its last dedup.
    await handlers.restore(user.agent, "c", eager=True)
    await user.dedup_again("c")
    assert user.lookups == 1


async def test_pages_that_are_kept_of_others_count_as_memory_of_the_node(make_node: MakeNode) -> None:
    holder, user = await make_node("n0"), await make_node("n1")
    await learn(holder, user)
    with_it = user.agent.accounting.used_bytes()
    size = user.agent.remote_index.used_bytes
    user.agent.remote_index.clear()
    assert user.agent.accounting.used_bytes() == with_it - size


async def test_the_nodes_own_base_comes_first(make_agent: MakeAgent, make_app: MakeApp) -> None:
    holder, user = Node(await make_agent("n0"), make_app), Node(await make_agent("n1"), make_app)
    await holder.dedup("a", 1)
    await user.dedup("b", 2)
    assert len(user.agent.bases.bases) == 1, "without a controller each node makes its own"
    user.agent.peers.learn(holder.agent.endpoints)
    user.agent.remote_index.used("default", [holder.agent.bases.get(holder.only_base).descriptor])
    await until(lambda: user.learnt == [holder.only_base], "learnt")
    report = await user.dedup("c", 3)
    assert report.remote_pages_read == 0
    assert report.gross_saved_bytes > 0.6 * report.warm_bytes
    assert (user.looked_up("own"), user.looked_up("remote")) == (1.0, 0.0)


async def test_another_domain_does_not_find_it(make_node: MakeNode) -> None:
    holder, user = await make_node("n0"), await make_node("n1")
    await learn(holder, user)
    report = await user.dedup("c", 3, tenant="blue")
    assert report.base_bytes_added > 0
    assert report.remote_pages_read == 0
    assert user.lookups == 2


async def test_a_base_that_its_holder_refuses_is_forgotten_and_the_controller_asked(
    make_node: MakeNode,
) -> None:
    """There is another base of the function by then, at a third node."""
    holder, user, third = await make_node("n0"), await make_node("n1"), await make_node("n2")
    first = await learn(holder, user)
    old = holder.only_base
    await retire_base(holder.agent, old)
    assert (await third.dedup("t", 4)).base_bytes_added > 0
    report = await user.dedup("c", 3)
    assert any("a base known here is gone" in note.text for note in report.notes)
    assert report.remote_pages_read > 0
    assert report.gross_saved_bytes > 0.9 * first.gross_saved_bytes
    assert user.lookups == 2
    await until(lambda: user.learnt == [third.only_base], "the new one in place of the old one")
    await user.dedup("d", 5)
    assert user.lookups == 2


async def test_a_base_that_the_controller_names_in_vain_is_given_up(make_node: MakeNode) -> None:
    """The holder refuses it and the controller does not know yet: no second round."""
    holder, user = await make_node("n0"), await make_node("n1")
    await learn(holder, user)
    holder.agent.bases.retire(holder.only_base)
    report = await user.dedup("c", 3)
    assert report.remote_pages_read == 0
    assert any("remote bases not used" in note.text for note in report.notes)
    assert (user.lookups, user.learnt) == (2, [])


async def test_a_base_is_made_of_what_the_old_one_held(make_node: MakeNode) -> None:
    """Known here, gone everywhere else: it must not count as covering the pages of a new base."""
    holder, user = await make_node("n0"), await make_node("n1")
    await learn(holder, user)
    await retire_base(holder.agent, holder.only_base)
    report = await user.dedup("c", 3)
    assert report.base_bytes_added > 0.5 * report.warm_bytes
    assert (report.remote_pages_read, user.learnt) == (0, [])
    assert report.gross_saved_bytes > 0.6 * report.warm_bytes


async def test_asking_anew_leaves_out_what_is_known_here(
    make_node: MakeNode, make_app: MakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what another op learns again at that moment."""
    holder, user = await make_node("n0"), await make_node("n1")
    await learn(holder, user)
    image = native.attach([make_app(MEGABYTES, 3).pid])
    prints, locations, _ = native.survey(image, 8, user.agent.bases.index("default"))
    found = candidates.Candidates(user.agent, "default", prints, locations)
    await found.gather()
    assert (found.kept, user.lookups) == (True, 1)
    assert (await found.locations(remote=False)).pack()[1] == []
    assert (await found.locations(remote=True)).pack()[1] == [holder.only_base]
    monkeypatch.setattr(user.agent.remote_index, "forget", lambda base_ids: None)
    await found.ask_anew()
    assert (found.kept, user.lookups) == (False, 2)
    assert list(found.descriptors) == [holder.only_base], "the controller named it"
    await found.ask_anew()
    assert user.lookups == 2, "nothing to leave out"


async def test_a_holder_that_is_away_is_forgotten_and_its_bases_left_out(make_node: MakeNode) -> None:
    holder, user = await make_node("n0"), await make_node("n1")
    await learn(holder, user)
    await holder.daemon._peer.stop(0.0)
    report = await user.dedup("c", 3)
    assert report.remote_pages_read == 0
    assert any("remote bases not used" in note.text for note in report.notes)
    assert (user.lookups, user.learnt) == (1, [])
    await user.dedup("d", 4)
    assert user.lookups == 2, "the next one asks again"


async def test_a_holder_whose_pages_cannot_be_read_is_forgotten(make_node: MakeNode) -> None:
    holder, user = await make_node("n0"), await make_node("n1")
    await learn(holder, user)
    assert holder.daemon._pages is not None
    holder.daemon._pages.close()
    report = await user.dedup("c", 3)
    assert report.remote_pages_read == 0
    assert any("remote bases not used" in note.text for note in report.notes)
    assert (user.lookups, user.learnt) == (1, [])


async def test_a_holder_that_leaves_is_noticed_without_an_op(make_node: MakeNode) -> None:
    holder, user = await make_node("n0"), await make_node("n1")
    await learn(holder, user)
    await user.agent.peers.keep_pages()
    assert user.learnt == [holder.only_base]
    await holder.daemon._peer.stop(0.0)
    await user.agent.peers.keep_pages()
    assert user.learnt == []


async def test_another_number_of_samples_forgets_everything(make_node: MakeNode) -> None:
    holder, user = await make_node("n0"), await make_node("n1")
    await learn(holder, user)
    await user.agent.joined(Joined(4, 50, 2000, "x"))
    assert user.learnt == []


async def test_a_restarted_agent_learns_again(make_node: MakeNode) -> None:
    holder, user = await make_node("n0"), await make_node("n1")
    await learn(holder, user)
    await user.daemon.stop()
    again = await make_node("n1")
    assert again.learnt == []
    await again.dedup("c", 3)
    await until(lambda: again.learnt == [holder.only_base], "learnt")
    await again.dedup("d", 4)
    assert again.lookups == 1


async def test_nothing_is_kept_where_the_setting_says_so(
    make_agent: MakeAgent, make_app: MakeApp, controller: Controller
) -> None:
    holder = Node(await make_agent("n0", controller.address), make_app)
    user = Node(await make_agent("n1", controller.address, remote_index_limit_bytes=0), make_app)
    await holder.dedup("a", 1)
    for n, sandbox_id in enumerate(("b", "c")):
        await user.dedup(sandbox_id, 2 + n)
        assert (user.lookups, user.learnt) == (n + 1, [])
