"""The transition table and what a SandboxEntry makes of it."""

from __future__ import annotations

import pytest

from medes.agent.sandboxes.sandbox import SandboxEntry, SandboxSpec
from medes.agent.sandboxes.states import (
    TRANSITIONS,
    may_follow,
    require_dedup_allowed,
    require_restore_possible,
)
from medes.drivers.process.subjects import ProcessSubjects
from medes.errors import InternalError, LostError, WrongStateError
from medes.types import SandboxState as S


def entry(state: S = S.WARM) -> SandboxEntry:
    subject = ProcessSubjects().from_json("s1", {})
    return SandboxEntry(SandboxSpec("s1", "f"), subject, "node", state, 10.0)


def test_every_state_but_unspecified_is_in_the_table() -> None:
    assert set(TRANSITIONS) == set(S) - {S.UNSPECIFIED}


def test_every_state_can_be_purged_and_nothing_follows_purged() -> None:
    for state in TRANSITIONS:
        assert may_follow(state, S.PURGED) == (state is not S.PURGED)
    assert TRANSITIONS[S.PURGED] == frozenset()


def test_a_sandbox_with_missing_pages_never_becomes_running_without_restoring() -> None:
    assert not may_follow(S.DEDUP, S.RUNNING)
    assert not may_follow(S.DEDUP, S.WARM)
    assert may_follow(S.RESTORING, S.RUNNING)


def test_only_states_with_evicted_pages_can_be_lost() -> None:
    assert {s for s in TRANSITIONS if may_follow(s, S.LOST)} == {S.DEDUPING, S.DEDUP, S.RESTORING}


def test_move_follows_the_table_and_restarts_the_age() -> None:
    e = entry()
    assert e.move(S.DEDUPING, 11.0) is S.WARM
    assert (e.state, e.since_s) == (S.DEDUPING, 11.0)
    with pytest.raises(InternalError, match="no transition"):
        e.move(S.RUNNING, 12.0)
    assert (e.state, e.since_s) == (S.DEDUPING, 11.0)


def test_completed_is_clear_exactly_while_restoring() -> None:
    e = entry(S.DEDUP)
    e.move(S.RESTORING, 1.0)
    assert not e.completed.is_set()
    e.move(S.WARM, 2.0)
    assert e.completed.is_set()


@pytest.mark.parametrize("state", [S.RUNNING, S.DEDUPING, S.DEDUP, S.RESTORING, S.PURGED])
def test_dedup_needs_a_warm_sandbox(state: S) -> None:
    with pytest.raises(WrongStateError, match=state.label):
        require_dedup_allowed("s1", state)


def test_a_lost_sandbox_says_so() -> None:
    with pytest.raises(LostError):
        require_dedup_allowed("s1", S.LOST)
    with pytest.raises(LostError, match="base gone"):
        require_restore_possible("s1", S.LOST, "base gone")
    with pytest.raises(WrongStateError):
        require_restore_possible("s1", S.PURGED, "")
    for state in (S.WARM, S.RUNNING, S.DEDUP, S.RESTORING):
        require_restore_possible("s1", state, "")


def test_kept_bytes_show_only_while_something_is_kept() -> None:
    e = entry()
    e.warm_bytes, e.kept_at_op_bytes = 100, 7
    assert e.view(11.0).kept_bytes == 0
    e.state = S.DEDUP
    view = e.view(12.5)
    assert (view.kept_bytes, view.warm_bytes, view.state_age_ms) == (7, 100, 2500)


def test_a_spec_survives_its_journal_form() -> None:
    spec = SandboxSpec("s1", "f", "t", "d", hook_address="/h", purge_kills=True)
    assert SandboxSpec.from_json(spec.to_json()) == spec
    newer = {**spec.to_json(), "added_later": 1}
    assert SandboxSpec.from_json(newer) == spec
