"""`medes bench connections`, a few cycles: each connection holds, and one that does not is told of."""

from __future__ import annotations

from typing import Any

import pytest

from medes.bench import connections
from medes.bench.programs import held
from medes.client import MedesClient
from medes.errors import BusyError, CorruptError, InvalidArgumentError

LINE_KEYS = {
    "program", "cycles", "woken", "busy", "kept_ratio_p50", "dedup_ms_p50", "use_asleep_ms_p50", "use_asleep_ms_p99",
    "use_awake_ms_p50", "use_awake_ms_p99", "verified", "commit", "cpu", "kernel", "load_average",
}  # fmt: skip


@pytest.mark.live
@pytest.mark.parametrize("name", list(held.HELD))
def test_a_connection_holds(name: str) -> None:
    if why := held.HELD[name].program.missing():
        pytest.skip(why)
    options = connections.Options(programs=(name,), cycles=4, keys=1000, items=1000)
    (line,) = connections.run(options)
    assert set(line) >= LINE_KEYS, line
    assert (line["cycles"], line["verified"]) == (4, True)
    assert 0 < line["kept_ratio_p50"] < 1


@pytest.mark.live
def test_one_that_does_not_hold_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    use, uses = held.HttpConnection.use, 0

    def counted(connection: held.HttpConnection) -> None:
        nonlocal uses
        uses += 1
        if uses == 4:
            connection._count += 1  # as if the server had lost one
        use(connection)

    monkeypatch.setattr(held.HttpConnection, "use", counted)
    (line,) = connections.run(connections.Options(programs=("http",), cycles=4, items=1000))
    assert (line["cycles"], line["verified"]) == (1, False)
    assert "answered" in line["failure"]


@pytest.mark.live
def test_an_op_that_is_busy_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    dedup, asked = MedesClient.dedup, 0

    def refused_once(client: MedesClient, sandbox_id: str) -> Any:
        nonlocal asked
        asked += 1
        if asked == 2:
            raise BusyError("a process of it ended during the op", object=sandbox_id)
        return dedup(client, sandbox_id)

    monkeypatch.setattr(MedesClient, "dedup", refused_once)
    (line,) = connections.run(connections.Options(programs=("http",), cycles=2, items=1000))
    assert (line["cycles"], line["verified"]) == (2, True), line
    assert line["busy"] >= 1


def test_an_unknown_program() -> None:
    with pytest.raises(InvalidArgumentError, match="no such program"):
        list(connections._select(["emacs"]))


def test_a_wrong_answer_is_corrupt() -> None:
    with pytest.raises(CorruptError, match="answered 2 where 1 was due"):
        held._expect("http", 2, 1)
