"""Journal: what is written is read again, whatever was cut off or damaged; the reduction and its snapshot."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medes.agent.journal import journal_writer
from medes.agent.journal.journal import Journal, Record, decode_line, encode_line
from medes.agent.journal.journal_state import JournalState
from medes.agent.journal.journal_writer import JournalWriter
from medes.agent.journal.records import DEDUP, DEDUPING, LOST, RESTORING, WARM
from medes.errors import AlreadyExistsError

SPEC = {"sandbox_id": "s1", "function": "f", "pids": [1]}
REGISTERED = {"t": "sandbox", "spec": SPEC}


def op(kind: str, **more: object) -> dict[str, object]:
    return {"t": kind, "id": "s1", "path": "/p", "holder": "s1.a", "pins": {"n1": [5], "n2": [6]}, **more}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=8), json_values, max_size=5))
def test_a_line_gives_its_record_back(record: dict[str, object]) -> None:
    line = encode_line(record)
    assert line.count(b"\n") == 1
    assert decode_line(line[:-1]) == record


@given(st.binary(max_size=80))
def test_noise_is_no_record(noise: bytes) -> None:
    found = decode_line(noise)
    assert found is None or encode_line(found)[:-1] == noise


def test_every_truncation_of_the_last_line_keeps_the_lines_before(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    first, second = {"t": "a", "n": 1}, {"t": "b", "n": 2}
    whole = encode_line(first) + encode_line(second)
    start = len(encode_line(first))
    for length in range(start, len(whole)):
        path.write_bytes(whole[:length])
        journal = Journal(path)
        # Only the newline missing: the record is whole, and no append may run into it.
        kept = [first, second] if length == len(whole) - 1 else [first]
        assert journal.read() == kept
        journal.append([{"t": "c"}])
        assert journal.read() == [*kept, {"t": "c"}]
        journal.close()


def test_a_damaged_line_is_skipped_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    lines = [bytearray(encode_line({"t": "x", "n": n})) for n in range(3)]
    lines[1][25] ^= 1
    path.write_bytes(b"".join(lines))
    journal = Journal(path)
    assert [r["n"] for r in journal.read()] == [0, 2]
    assert journal.damaged_lines == 1
    journal.close()


def test_two_agents_cannot_share_a_state_dir(tmp_path: Path) -> None:
    first = Journal(tmp_path / "journal")
    with pytest.raises(AlreadyExistsError, match="another agent"):
        Journal(tmp_path / "journal")
    first.close()
    Journal(tmp_path / "journal").close()


def test_the_journal_is_private(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "state" / "journal")
    assert (tmp_path / "state" / "journal").stat().st_mode & 0o077 == 0
    assert (tmp_path / "state").stat().st_mode & 0o077 == 0
    journal.close()


def test_phases_of_an_op() -> None:
    state = JournalState.replay([REGISTERED])
    assert state.sandboxes["s1"].phase == WARM
    state.apply(op(DEDUPING))
    assert state.sandboxes["s1"].phase == DEDUPING
    state.apply(op(DEDUP, figures={"warm_bytes": 9}))
    assert state.sandboxes["s1"].figures == {"warm_bytes": 9}
    state.apply({"t": RESTORING, "id": "s1"})
    restoring = state.sandboxes["s1"]
    assert (restoring.phase, restoring.path, restoring.pins) == (RESTORING, "/p", {"n1": [5], "n2": [6]})
    state.apply({"t": WARM, "id": "s1"})
    assert (state.sandboxes["s1"].path, state.sandboxes["s1"].pins) == ("", {})
    state.apply({"t": "purged", "id": "s1"})
    state.apply({"t": WARM, "id": "s1"})
    assert state.sandboxes == {}


def test_records_of_a_newer_agent_are_kept_for_it() -> None:
    state = JournalState.replay([{"t": "invented"}, {"no": "kind"}])
    assert state.unknown == [{"t": "invented"}, {"no": "kind"}]
    assert JournalState.replay(state.snapshot()) == state


HISTORIES = st.lists(
    st.sampled_from(
        [
            REGISTERED,
            {"t": "sandbox", "spec": {**SPEC, "sandbox_id": "s2"}},
            op(DEDUPING),
            op(DEDUP),
            op(DEDUP, figures={"kept_bytes": 3}),
            {"t": RESTORING, "id": "s1"},
            {"t": WARM, "id": "s1"},
            {"t": LOST, "id": "s1", "reason": "r"},
            {"t": "purged", "id": "s1"},
            {"t": "base", "descriptor": {"base_id": 5, "domain": "d"}, "path": "/b", "sandbox_id": "s1"},
            {"t": "base_retired", "base_id": 5},
            {"t": "base_gone", "base_id": 5},
            {"t": "pins", "node": "n2", "holder": "h", "domain": "d", "base_ids": [5]},
            {"t": "pins", "node": "n2", "holder": "h", "domain": "d", "base_ids": []},
            {"t": "peer", "endpoints": {"node_id": "n2", "grpc_address": "a:1"}},
            {"t": "node", "samples_per_page": 8},
        ]
    ),
    max_size=20,
)


@given(HISTORIES)
def test_a_snapshot_replays_to_the_same_state(history: list[dict[str, object]]) -> None:
    state = JournalState.replay(history)
    again = JournalState.replay(state.snapshot())
    assert again == state


async def test_writer_compacts_and_loses_nothing(tmp_path: Path) -> None:
    writer = JournalWriter(Journal(tmp_path / "journal"))
    await writer.write(REGISTERED, sync=True)
    writer._compact_at_bytes = 2000
    for n in range(200):
        await writer.write(op(DEDUP, figures={"n": n}))
    await writer.write({"t": "node", "samples_per_page": 8})
    size = (tmp_path / "journal").stat().st_size
    expected = writer.state
    writer.close()
    assert size < 200 * len(encode_line(op(DEDUP, figures={"n": 1}))), "it was never compacted"
    again = JournalWriter(Journal(tmp_path / "journal"))
    assert again.state == expected
    assert again.state.sandboxes["s1"].figures == {"n": 199}
    again.close()


def test_a_disk_that_does_not_answer_does_not_hold_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(journal_writer, "JOURNAL_WRITE_TIMEOUT_S", 0.05)
    journal, answers, written = Journal(tmp_path / "journal"), threading.Event(), threading.Event()
    writer = JournalWriter(journal)
    append = journal.append

    def late(records: Iterable[Record], *, sync: bool = False) -> None:
        answers.wait()
        append(records, sync=sync)
        written.set()

    monkeypatch.setattr(journal, "append", late)
    writer.post({"t": "node", "samples_per_page": 8})
    writer.close()
    assert "does not answer" in caplog.text
    answers.set()
    assert written.wait(30.0)
    journal.close()
