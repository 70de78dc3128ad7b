"""Which transports a setting makes a node run, and in what order."""

from __future__ import annotations

from typing import Any

import pytest

from medes import plugins
from medes.config import AgentSettings
from medes.errors import UnsupportedError
from medes.plugins import Kind
from medes.transport.choice import open_transports


class Slow:
    name, encrypts, preference, where = "slow", True, 1, ""

    @classmethod
    def open(cls, settings: AgentSettings) -> Any:
        return cls()

    @classmethod
    def trusts(cls, settings: AgentSettings) -> bool:
        return False


class Fast(Slow):
    name, preference, where = "fast", 2, "port 7"


class Plain(Fast):
    name, encrypts = "plain", False


class Absent(Slow):
    name = "absent"

    @classmethod
    def open(cls, settings: AgentSettings) -> Any:
        raise UnsupportedError("no such device")


@pytest.fixture(autouse=True)
def own(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {kind.name: f"{__name__}:{kind.__name__}" for kind in (Slow, Fast, Plain, Absent)}
    monkeypatch.setitem(plugins.OWN, Kind.TRANSPORT, kinds)


def names(settings: AgentSettings) -> list[str]:
    return [t.name for t in open_transports(settings).running]


def test_auto_takes_those_that_run_and_encrypt_the_preferred_first() -> None:
    chosen = open_transports(AgentSettings())
    assert [t.name for t in chosen.running] == ["fast", "slow"] and chosen.required == ""
    assert str(chosen).startswith("fast on port 7, slow, TCP; ")
    assert "plain does not encrypt" in str(chosen) and "no absent: no such device" in str(chosen)


def test_what_does_not_encrypt_is_used_where_nothing_does_or_its_way_is_trusted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert "plain" in names(AgentSettings(insecure_plaintext=True))
    monkeypatch.setattr(Plain, "trusts", lambda settings: True)
    assert "plain" in names(AgentSettings())


def test_one_that_is_named_is_the_only_one_and_required() -> None:
    chosen = open_transports(AgentSettings(transport="plain"))
    assert ([t.name for t in chosen.running], chosen.required) == (["plain"], "plain")
    with pytest.raises(UnsupportedError, match="no such device"):
        open_transports(AgentSettings(transport="absent"))


@pytest.mark.parametrize("setting", ["tcp", "local"])
def test_tcp_and_local_open_none(setting: str) -> None:
    assert open_transports(AgentSettings(transport=setting)).running == ()
