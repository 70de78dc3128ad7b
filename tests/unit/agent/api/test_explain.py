"""What an agent tells of its sandboxes: explain, outcomes of ops, levels of log lines, bases and their end."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from medes.agent.api import bases_view, handlers
from medes.agent.api.explain import explain
from medes.agent.api.registration import Registration
from medes.agent.daemon import AgentDaemon
from medes.agent.ops import outcomes, turns, waiting
from medes.agent.ops.base_op import retire_unneeded, retire_unused
from medes.agent.sandboxes.sandbox import OPS_REMEMBERED
from medes.agent.store.orphans import Orphan
from medes.cli.explanation import explanation, restored_text
from medes.client import AsyncMedesClient
from medes.errors import (
    CorruptError,
    InvalidArgumentError,
    LimitExceededError,
    LostError,
    NotFoundError,
    TracedError,
    WrongStateError,
)
from medes.types import Activity, LifecycleSettings, NoteCode, RestoreReport
from medes.types import SandboxState as S
from medes.units import bytes_text
from tests.support.counter_app import App
from tests.unit.agent.conftest import MakeAgent
from tests.unit.agent.ops.test_agent_ops import register, until

MakeApp = Callable[..., App]


def sample(daemon: AgentDaemon, name: str, **labels: str) -> float:
    return daemon.registry.get_sample_value(f"medes_agent_{name}", labels) or 0.0


async def test_explain_follows_a_sandbox_through_its_states(make_agent: MakeAgent, make_app: MakeApp) -> None:
    daemon = await make_agent()
    await register(daemon, make_app(), purge_kills=True)
    agent = daemon.agent
    warm = explain(agent, "s1")
    assert (warm.sandbox.state, warm.reason, warm.ops) == (S.WARM, "registered", ())
    assert (warm.next_action, warm.next_reason) == ("dedup", "idle period")
    assert 3_500_000 < warm.next_in_ms <= 3_600_000
    assert warm.lifecycle == LifecycleSettings(3_600_000, 7_200_000, 7_200_000, False, 3_600_000)

    report = (await handlers.dedup(agent, "s1")).report
    out = explain(agent, "s1")
    assert (out.sandbox.state, out.patch_bytes, out.table_bytes, out.resident_bytes) == (
        S.DEDUP,
        report.patch_bytes,
        report.table_bytes,
        report.resident_bytes,
    )
    assert (out.next_action, out.next_reason) == ("purge", "keep-dedup period")
    (share,) = out.bases
    assert (share.node_id, share.users, share.share_bytes) == ("n0", 1, agent.bases.used_bytes)
    assert share.share_bytes == out.sandbox.base_share_bytes
    (op,) = out.ops
    assert (op.kind, op.outcome, op.reason, op.stage_us) == ("dedup", "done", "asked for", report.stage_us)
    assert NoteCode.PAGES_STAY in {note.code for note in op.notes}

    await handlers.notify_activity(agent, "s1", Activity.BEGUN)
    await until(lambda: agent.entries["s1"].state is S.RUNNING, "running")
    back = explain(agent, "s1")
    assert (back.requests, back.next_action) == (1, "idle")
    assert back.previous_bytes > 0 and back.bases[0].users == 0
    restore, _ = back.ops
    assert (restore.kind, restore.outcome, restore.reason) == ("restore", "done", "request begun")
    assert {"queue", "peers", "ready", "complete", "fetch", "apply", "place", "settle"} == set(
        restore.stage_us
    )
    text = "\n".join(explanation(back))
    for part in ("s1: running", "restore done", "dedup done", "pages_stay: a page is mlocked", "1 begun"):
        assert part in text
    with pytest.raises(NotFoundError):
        explain(agent, "s2")


async def test_a_refused_dedup_is_told_counted_and_logged(
    make_agent: MakeAgent, make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    daemon = await make_agent()
    await register(daemon, make_app())
    daemon.driver.fail_evict = TracedError("held by gdb", object="pid 5", hint="detach it")  # type: ignore[attr-defined]
    for _ in range(OPS_REMEMBERED + 2):
        with pytest.raises(TracedError):
            await turns.dedup(daemon.agent, daemon.agent.entry("s1"), reason="idle period over")
    found = explain(daemon.agent, "s1")
    assert len(found.ops) == OPS_REMEMBERED
    assert (found.ops[0].outcome, found.ops[0].message, found.ops[0].hint) == (
        "traced",
        "pid 5: held by gdb",
        "detach it",
    )
    assert "encode" in found.ops[0].stage_us
    assert found.dedup_failures == OPS_REMEMBERED + 2
    assert "failed dedup ops" in found.next_reason
    assert sample(daemon, "dedups_total", outcome="traced") == OPS_REMEMBERED + 2
    told = [r for r in caplog.records if "dedup failed (idle period over): traced" in r.getMessage()]
    assert {r.levelno for r in told} == {logging.WARNING}


async def test_losses_are_errors_and_requests_are_debug(
    make_agent: MakeAgent, make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    daemon = await make_agent()
    await register(daemon, make_app())
    for activity in (Activity.BEGUN, Activity.ENDED):
        await handlers.notify_activity(daemon.agent, "s1", activity)
    await handlers.dedup(daemon.agent, "s1")
    daemon.driver.fail_restores = True  # type: ignore[attr-defined]
    with pytest.raises(LostError):
        await handlers.restore(daemon.agent, "s1", eager=True)
    levels = {r.getMessage().partition(": ")[2]: r.levelname for r in caplog.records}
    assert levels["warm → running: request begun"] == levels["running → warm: request ended"] == "DEBUG"
    assert levels["warm → deduping: asked for"] == "INFO"
    assert next(level for text, level in levels.items() if "→ lost" in text) == "ERROR"
    assert sample(daemon, "sandboxes_lost_total") == 1
    assert sample(daemon, "restores_total", outcome="lost") == 1
    found = explain(daemon.agent, "s1")
    assert (found.sandbox.state, found.ops[0].outcome) == (S.LOST, "lost")
    assert found.reason == found.sandbox.lost_reason != ""


async def test_a_slow_restore_is_explained_by_one_line(
    make_agent: MakeAgent, make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    daemon = await make_agent(restore_slow_ms=1)
    await register(daemon, make_app())
    entry = daemon.agent.entries["s1"]
    for took_us, lines in ((900, 0), (5000, 1)):
        caplog.clear()
        stages = {"queue": 100, "peers": 700, "ready": 100}
        report = RestoreReport(
            100,
            60,
            7,
            ready_us=100,
            waited_us=took_us,
            complete_us=100,
            stage_us=stages,
            pages_by_transport={"tcp": 4},
        )
        outcomes.restore_done(daemon.agent, entry, report)
        slow = [r.getMessage() for r in caplog.records if "slow restore" in r.getMessage()]
        assert len(slow) == lines
    for part in ("queue 0.1 ms", "peers 0.7 ms", "60 ahead", "7 faults", "4 by tcp"):
        assert part in slow[0]
    assert sample(daemon, "restore_stage_seconds_count", stage="peers") == 2


def test_texts_of_a_restore_say_what_was_waited_for() -> None:
    lazy = RestoreReport(17161, 0, 0, ready_us=18, waited_us=1500)
    assert restored_text(lazy) == (
        "runs again after 1.5 ms; 0 of 17161 pages came ahead, the rest comes as it is touched and behind that"
    )
    whole = RestoreReport(17161, 100, 5, ready_us=18, waited_us=1518, complete_us=230_000)
    assert "whole after 231.5 ms" in restored_text(whole)


async def test_bases_are_listed_and_only_what_nobody_pins_is_removed(
    make_agent: MakeAgent, make_app: MakeApp
) -> None:
    daemon = await make_agent()
    agent = daemon.agent
    await register(daemon, make_app())
    await handlers.dedup(agent, "s1")
    async with AsyncMedesClient(daemon.settings.listen) as client:
        (base,) = await client.bases()
        assert (base.pins_by_node, base.sandboxes, base.made_by, base.maker_is_here) == (
            {"n0": 1},
            1,
            "s1",
            True,
        )
        assert base.bytes == agent.bases.used_bytes and base.unneeded_ms == 0
        assert await client.bases(function="g") == await client.bases(domain="other") == []
        base_id = base.base.base_id
        with pytest.raises(WrongStateError, match=r"pinned by .* n0 \(1\)"):
            await client.remove_base(base_id, force=True)
        await client.restore("s1", eager=True)
        with pytest.raises(WrongStateError, match="sandboxes of f are here"):
            await client.remove_base(base_id)
        assert await client.remove_base(base_id, force=True) == base.bytes
        assert await client.bases() == []
        with pytest.raises(NotFoundError):
            await client.remove_base(base_id)
        explained = await client.explain("s1")
        assert [op.kind for op in explained.ops] == ["restore", "dedup"]
    assert list(daemon.settings.shm_path.glob("base-*")) == []


async def test_a_base_that_nobody_needs_goes_after_its_period(
    make_agent: MakeAgent, make_app: MakeApp
) -> None:
    daemon = await make_agent()
    agent = daemon.agent
    await register(daemon, make_app())
    await handlers.dedup(agent, "s1")
    assert await retire_unneeded(agent, 0.0) == []  # pinned
    await handlers.restore(agent, "s1", eager=True)
    assert await retire_unneeded(agent, 0.0) == []  # the next op wants it
    await handlers.purge(agent, "s1")
    assert await retire_unneeded(agent, 3600.0) == []
    (base,) = await bases_view.list_bases(agent)
    assert (base.made_by, base.maker_is_here, base.pins) == ("s1", False, 0)
    agent.bases.get(base.base.base_id).unneeded_s -= 3600.0  # type: ignore[operator]
    assert await retire_unneeded(agent, 3600.0) == [base.base.base_id]
    assert list(daemon.settings.shm_path.glob("base-*")) == []


async def test_no_base_goes_while_a_sandbox_file_is_there_that_the_agent_does_not_know(
    make_agent: MakeAgent, make_app: MakeApp
) -> None:
    daemon = await make_agent()
    agent = daemon.agent
    await register(daemon, make_app())
    await handlers.dedup(agent, "s1")
    await handlers.purge(agent, "s1")
    path = str(daemon.settings.shm_path / "sandbox-who.medes")
    agent.orphans[path] = Orphan(path, CorruptError("its meta is damaged"))
    assert await retire_unneeded(agent, 0.0) == await retire_unused(agent, set()) == []
    (base,) = await bases_view.list_bases(agent)
    with pytest.raises(WrongStateError, match="the agent does not know"):
        await bases_view.remove_base(agent, base.base.base_id)
    del agent.orphans[path]
    assert await retire_unneeded(agent, 0.0) == [base.base.base_id]


async def test_an_agent_that_ends_takes_bases_along_that_nobody_needs(
    make_agent: MakeAgent, make_app: MakeApp
) -> None:
    daemon = await make_agent()
    await register(daemon, make_app())
    await register(daemon, make_app(), "s2")
    await handlers.dedup(daemon.agent, "s1")
    await handlers.purge(daemon.agent, "s1")
    await daemon.stop()
    assert len(list(daemon.settings.shm_path.glob("base-*"))) == 1  # s2 will want it
    again = await make_agent()
    await handlers.purge(again.agent, "s2")
    await again.stop()
    assert list(daemon.settings.shm_path.glob("base-*")) == []


async def test_reasons_show_bytes_and_times_with_units(make_agent: MakeAgent, make_app: MakeApp) -> None:
    daemon = await make_agent()
    await register(daemon, make_app())
    report = (await handlers.dedup(daemon.agent, "s1")).report
    reason = explain(daemon.agent, "s1").reason
    assert f"of {bytes_text(report.warm_bytes)}; " in reason
    assert str(report.warm_bytes) not in reason
    await handlers.restore(daemon.agent, "s1", eager=True)
    await until(lambda: daemon.agent.entries["s1"].state is S.WARM, "whole")
    assert explain(daemon.agent, "s1").reason == "restored in 5 µs"  # the stand-in's


async def test_the_end_tells_of_all_that_waits(
    make_agent: MakeAgent, make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a sandbox that was taken back, of one that was not, and of a file that could not be read."""
    caplog.set_level(logging.INFO)
    daemon = await make_agent()
    for sandbox_id, seed in (("s1", 1), ("s2", 2)):
        await register(daemon, make_app(seed=seed), sandbox_id)
        await handlers.dedup(daemon.agent, sandbox_id)
    entry = daemon.agent.entries["s2"]
    waiting.wait(daemon.agent, entry, LimitExceededError("no descriptor is left"))
    entry.evicted = None
    path = str(daemon.settings.shm_path / "sandbox-s3.medes")
    daemon.agent.orphans[path] = Orphan(path, LimitExceededError("no descriptor is left"))
    await daemon.stop()
    assert "wait for the next one: 2, and files of such that could not be read: 1" in caplog.text


async def test_a_name_that_is_none_is_told_once(make_agent: MakeAgent, make_app: MakeApp) -> None:
    daemon = await make_agent()
    with pytest.raises(InvalidArgumentError) as caught:
        await handlers.register(daemon.agent, Registration(function="bad name", pids=(make_app().pid,)))
    assert str(caught.value).startswith("function: 'bad name' is not a name")
