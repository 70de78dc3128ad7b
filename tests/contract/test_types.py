"""medes.types and the protos have the same fields, and values survive the way there and back."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from medes.rpc.gen import agent_pb2, common_pb2, controller_pb2

from medes import types
from medes.errors import InvalidArgumentError
from medes.rpc.convert import RENAMED, WAS_SINGLE, from_proto, to_proto

PAIRS: list[tuple[Any, Any]] = [
    (types.AddressRange, common_pb2.AddressRange),
    (types.BaseDescriptor, common_pb2.BaseDescriptor),
    (types.NodeEndpoints, common_pb2.NodeEndpoints),
    (types.NodeUsage, controller_pb2.NodeUsage),
    (types.NodeRecord, controller_pb2.NodeRecord),
    (types.SandboxRecord, controller_pb2.SandboxRecord),
    (types.Statistics, controller_pb2.GetStatisticsResponse),
    (types.LifecycleSettings, agent_pb2.LifecycleSettings),
    (types.DedupReport, agent_pb2.DedupReport),
    (types.RestoreReport, agent_pb2.RestoreReport),
    (types.Sandbox, agent_pb2.Sandbox),
    (types.DedupResult, agent_pb2.DedupResponse),
    (types.RestoreResult, agent_pb2.RestoreResponse),
    (types.SandboxEvent, agent_pb2.SandboxEvent),
    (types.BaseStatus, agent_pb2.BaseStatus),
    (types.NodeStatus, agent_pb2.NodeStatus),
    (types.FunctionUsage, common_pb2.FunctionUsage),
    (types.Note, agent_pb2.Note),
    (types.BaseShare, agent_pb2.BaseShare),
    (types.OpRecord, agent_pb2.OpRecord),
    (types.Explanation, agent_pb2.Explanation),
]


@pytest.mark.parametrize(("cls", "message"), PAIRS, ids=lambda x: x.__name__)
def test_fields_equal_the_messages(cls: Any, message: Any) -> None:
    names = {RENAMED.get((cls.__name__, f.name), f.name) for f in dataclasses.fields(cls)}
    before = {old for (owner, _), old in WAS_SINGLE.items() if owner == cls.__name__}
    assert names == {f.name for f in message.DESCRIPTOR.fields} - before


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (types.SandboxState, common_pb2.SandboxState),
        (types.Activity, agent_pb2.NotifyActivityRequest.Activity),
        (types.NoteCode, agent_pb2.NoteCode),
        (types.PurgeCause, agent_pb2.PurgeCause),
    ],
)
def test_enums_equal(ours: Any, theirs: Any) -> None:
    prefixes = {
        types.SandboxState: "SANDBOX_STATE_",
        types.NoteCode: "NOTE_CODE_",
        types.PurgeCause: "PURGE_CAUSE_",
    }
    prefix = prefixes.get(ours, "ACTIVITY_")
    assert {m.name: int(m) for m in ours} == {k.removeprefix(prefix): v for k, v in theirs.items()}


def test_values_survive_both_ways() -> None:
    base = types.BaseDescriptor(2**63 + 5, ("n", "m"), "d", "f", 3, (types.AddressRange(1, 2**47),), True)
    report = types.DedupReport(
        warm_bytes=5,
        pages_by_kind=(1, 2, 3, 4, 5),
        stage_us={"encode": 7},
        notes=(types.Note(types.NoteCode.PAGES_STAY, "mlock"),),
    )
    sandbox = types.Sandbox("s", state=types.SandboxState.DEDUP, pids=(4, 5), last_dedup=report)
    event = types.SandboxEvent(sandbox, types.SandboxState.DEDUPING, "idle", 9, types.PurgeCause.TIMER)
    for value, message in ((base, common_pb2.BaseDescriptor), (event, agent_pb2.SandboxEvent)):
        wire = to_proto(message, value).SerializeToString()
        assert from_proto(type(value), message.FromString(wire)) == value


def test_peers_from_before_there_were_several_holders() -> None:
    base = types.BaseDescriptor(5, ("n", "m"), "d")
    wire: Any = to_proto(common_pb2.BaseDescriptor, base)
    assert wire.node_id == "n", "what such a peer reads"
    wire.ClearField("holders")
    assert from_proto(types.BaseDescriptor, wire) == types.BaseDescriptor(5, ("n",), "d"), "what it writes"


def test_the_nearest_holder_is_the_node_itself_else_the_first() -> None:
    base = types.BaseDescriptor(5, ("n", "m"), "d")
    assert [base.nearest(node) for node in ("m", "n", "x")] == ["m", "n", "n"]
    assert base.without("n") == types.BaseDescriptor(5, ("m",), "d")
    assert base.without("x") == base
    assert types.BaseDescriptor(5, ("n",), "d").without("n") is None
    with pytest.raises(ValueError, match="holder"):
        types.BaseDescriptor(5, (), "d")


def test_a_descriptor_in_json_is_read_by_those_from_before_as_long_as_it_has_one_holder() -> None:
    one = types.BaseDescriptor(5, ("n",), "d", "f", 3, (types.AddressRange(1, 9),), True)
    assert one.to_json() == {
        "base_id": 5,
        "node_id": "n",
        "domain": "d",
        "function": "f",
        "page_count": 3,
        "ranges": ({"begin": 1, "end": 9},),
        "value_only": True,
    }
    two = dataclasses.replace(one, holders=("n", "m"))
    for base in (one, two):
        data = json.loads(json.dumps({**base.to_json(), "of_a_newer_version": 1}))
        assert types.BaseDescriptor.from_json(data) == base


def test_absent_reports_are_none_and_unknown_states_unspecified() -> None:
    sandbox = from_proto(types.Sandbox, agent_pb2.Sandbox(sandbox_id="s", state=77))
    assert sandbox.last_dedup is None
    assert sandbox.state is types.SandboxState.UNSPECIFIED


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="warm_bytes"):
        to_proto(agent_pb2.Sandbox, types.Sandbox("s", warm_bytes=-1))


def test_states_print_as_people_read_them() -> None:
    state = types.SandboxState.WARM
    assert (str(state), f"{state}", "%s" % state) == ("warm",) * 3  # noqa: UP031
    assert f"{types.Activity.BEGUN:>6}" == " begun"
    assert (int(state), state) == (2, 2)
