"""Bytes that others wrote (files of the state and cluster folders, settings, Redis): what they mean, or one error of the
catalogue that names the object; no other exception, and no record half taken."""

from __future__ import annotations

import base64
import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medes import native
from medes.agent.bases.bases import BaseMeta
from medes.agent.journal.journal import decode_line, encode_line
from medes.agent.journal.journal_state import JournalState
from medes.agent.ops.take_back import evicted_of, read_meta
from medes.certs.authority import Authority, Pem, check_pem, details
from medes.certs.parties import Party, Role, party_of
from medes.config import AgentSettings, ControllerSettings, load
from medes.controller.registry.redis_records import Record
from medes.errors import CorruptError, InvalidArgumentError, MedesError, UnsupportedError
from medes.eval import report as evaluation
from medes.types import AddressRange, BaseDescriptor

DEEP = b"[" * 200_000  # nested deeper than any parser goes

values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


GONE = object()


def places(whole: Any) -> list[tuple[Any, ...]]:
    """The ways to every part of a JSON value."""
    items = whole.items() if isinstance(whole, dict) else enumerate(whole) if isinstance(whole, list) else ()
    return [(), *((key, *way) for key, value in items for way in places(value))]


def put(whole: Any, way: tuple[Any, ...], value: Any) -> Any:
    if not way:
        return whole if value is GONE else value
    key, *rest = way
    if isinstance(whole, dict) and key in whole:
        if not rest and value is GONE:
            return {k: v for k, v in whole.items() if k != key}
        return {**whole, key: put(whole[key], tuple(rest), value)}
    if isinstance(whole, list) and isinstance(key, int) and key < len(whole):
        return [*whole[:key], put(whole[key], tuple(rest), value), *whole[key + 1 :]]
    return whole  # an earlier edit took the place away


def edited(whole: Any) -> st.SearchStrategy[Any]:
    """A JSON value of which some parts are anything else, or gone."""
    edits = st.lists(st.tuples(st.sampled_from(places(whole)), values | st.just(GONE)), max_size=3)
    return edits.map(lambda all_: functools.reduce(lambda made, edit: put(made, *edit), all_, whole))


def damaged(whole: bytes) -> st.SearchStrategy[bytes]:
    """With a few bytes changed."""
    edits = st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255)), min_size=1, max_size=4)

    def apply(changes: list[tuple[int, int]]) -> bytes:
        out = bytearray(whole)
        for at, value in changes:
            out[at] = value
        return bytes(out)

    return edits.map(apply)


# --- the journal -------------------------------------------------------------------------------------------
SPEC = {"sandbox_id": "s1", "function": "f", "pids": [1]}
RECORDS = [
    {"t": "node", "node_id": "n0", "samples_per_page": 8, "secret": "x"},
    {"t": "sandbox", "spec": SPEC},
    {"t": "deduping", "id": "s1", "path": "/p", "holder": "s1.a", "pins": {"n1": [5]}},
    {
        "t": "dedup",
        "id": "s1",
        "path": "/p",
        "holder": "s1.a",
        "pins": {"n1": [5]},
        "figures": {"kept_bytes": 3},
    },
    {"t": "restoring", "id": "s1"},
    {"t": "lost", "id": "s1", "reason": "r", "final": True},
    {"t": "purged", "id": "s1"},
    {"t": "base", "descriptor": {"base_id": 5}, "path": "/b", "sandbox_id": "s1"},
    {"t": "base_retired", "base_id": 5},
    {"t": "pins", "node": "n1", "holder": "h", "domain": "d", "base_ids": [5]},
    {"t": "peer", "endpoints": {"node_id": "n1", "grpc_address": "h:1"}},
]


@given(st.lists(st.sampled_from(RECORDS).flatmap(edited), max_size=8))
def test_any_journal_adds_up_to_a_state_that_is_written_and_read_again(records: list[Any]) -> None:
    lines = [encode_line(r) for r in records]
    read = [r for line in lines if (r := decode_line(line[:-1])) is not None]
    state = JournalState.replay([{"t": "sandbox", "spec": SPEC}, *read])
    written = [decode_line(encode_line(r)[:-1]) for r in state.snapshot()]
    assert None not in written
    again = JournalState.replay(r for r in written if r is not None)
    assert again.damaged_records == 0
    assert list(map(encode_line, again.snapshot())) == list(map(encode_line, state.snapshot()))


def test_a_line_that_nests_without_end_is_damaged() -> None:
    assert decode_line(b"%016x %s" % (native.checksum64(DEEP), DEEP)) is None


# --- what slabs and sandbox files say of themselves --------------------------------------------------------
BASE_META = json.loads(BaseMeta("d", "f", "s").encode())
DESCRIPTOR = {
    "base_id": 5,
    "node_id": "n1",
    "domain": "d",
    "function": "f",
    "page_count": 3,
    "ranges": [{"begin": 0, "end": 9}],
    "value_only": False,
}
META = {
    "version": 2,
    "readable_from": 1,
    "holder": "s1.a",
    "pins": {"n1": [5]},
    "descriptors": [DESCRIPTOR, {**DESCRIPTOR, "holders": ["n1", "n2"]}],
    "endpoints": [{"node_id": "n1", "grpc_address": "h:1", "page_address": "h:2", "transports": ["tcp"]}],
}


@dataclasses.dataclass
class WithMeta:
    """As much of a slab or sandbox file as says what it is."""

    meta: bytes
    path: str = "/shm/x"


def taken(meta: bytes) -> None:
    """Raises but for errors that the agent sets a file aside for."""
    file: Any = WithMeta(meta)
    for read in (BaseMeta.of, lambda f: evicted_of(f, read_meta(f))):
        try:
            read(file)
        except (CorruptError, UnsupportedError) as error:
            assert error.object == "/shm/x"


@given(edited(META) | edited(BASE_META))
def test_any_meta_is_taken_or_refused(meta: Any) -> None:
    taken(json.dumps(meta).encode())


@given(st.binary(max_size=60) | damaged(json.dumps(META).encode()))
def test_noise_as_meta_is_refused(meta: bytes) -> None:
    taken(meta)


def test_meta_that_nests_without_end_is_refused() -> None:
    taken(DEEP)


# --- Redis -------------------------------------------------------------------------------------------------
KEY = (5).to_bytes(8, "little")
RECORD = Record(BaseDescriptor(5, ("n1",), "d", "f", 3, (AddressRange(0, 9),)), 7, "ready")
TWO_HOLDERS = dataclasses.replace(RECORD, base=dataclasses.replace(RECORD.base, holders=("n1", "n2")))


def unpacked(data: bytes) -> Record | None:
    try:
        return Record.unpack(KEY, data)
    except CorruptError:
        return None


@given(st.sampled_from([RECORD, TWO_HOLDERS]).flatmap(lambda r: edited(json.loads(r.pack()))))
def test_a_record_of_redis_is_one_or_corrupt(fields: Any) -> None:
    record = unpacked(json.dumps(fields).encode())
    if record is not None:
        assert Record.unpack(KEY, record.pack()) == record
        assert record.state in ("adding", "ready", "leaving")
        assert all(isinstance(v, int) for v in (record.mark, record.base.base_id, record.base.page_count))


@given(st.binary(max_size=60) | damaged(RECORD.pack()))
def test_noise_in_redis_is_corrupt(data: bytes) -> None:
    unpacked(data)


def test_a_record_that_nests_without_end_is_corrupt() -> None:
    assert unpacked(DEEP) is None


# --- settings ----------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("settings")


def loaded(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    for kind in (AgentSettings, ControllerSettings):
        try:
            load(kind, file, {})
        except InvalidArgumentError as error:
            assert error.object


def as_toml(value: Any) -> str:
    """A value in TOML's words, which for most are JSON's."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {as_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    if isinstance(value, float):
        return repr(value)
    return '""' if value is None else json.dumps(value)


NAMES = sorted({f.name for kind in (AgentSettings, ControllerSettings) for f in dataclasses.fields(kind)})


@given(st.sampled_from(["agent", "controller"]), st.dictionaries(st.sampled_from(NAMES), values, max_size=3))
def test_any_value_of_a_setting_is_taken_or_refused(folder: Path, table: str, given_: dict[str, Any]) -> None:
    lines = [f"{name} = {as_toml(value)}" for name, value in given_.items()]
    loaded(folder / "medes.toml", "\n".join([f"[{table}]", *lines]).encode("utf-8", "surrogatepass"))


@given(
    st.binary(max_size=80)
    | damaged(b'[agent]\nnode_id = "n0"\nkeep_alive_period_s = 60.0\ntls = {ca = "x"}\n')
)
def test_noise_as_settings_is_refused(folder: Path, data: bytes) -> None:
    loaded(folder / "noise.toml", data)


def test_settings_that_nest_without_end_are_refused(folder: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="TOML"):
        (folder / "deep.toml").write_bytes(b"[agent]\nnode_id = " + DEEP[:20_000])
        load(AgentSettings, folder / "deep.toml", {})


# --- what an evaluation case has measured ------------------------------------------------------------------
MEASURED = [
    {"format": "medes evaluation", "version": 1, "readable_from": 1, "case": "c", "options": {}, "host": {}},
    {"figure": "a_ms", "value": 1.5, "labels": {"f": "g"}, "repetition": 0},
    {"absent": "b_ms", "why": "no CRIU", "labels": {}, "repetition": 0},
    {"ended": 0, "records": 2},
]


def read_back(data: bytes) -> None:
    try:
        parsed = evaluation.parse(data, "c.jsonl")
    except MedesError as error:
        assert error.object == "c.jsonl" and not error.transient
    else:
        evaluation.spreads(parsed)


@given(edited(MEASURED))
def test_any_lines_are_a_report_or_refused(lines: Any) -> None:
    texts = lines if isinstance(lines, list) else [lines]
    read_back(b"".join(json.dumps(line).encode() + b"\n" for line in texts))


@given(st.binary(max_size=60) | damaged(b"".join(json.dumps(line).encode() + b"\n" for line in MEASURED)))
def test_noise_as_a_report_is_refused(data: bytes) -> None:
    read_back(data)


# --- certificates ------------------------------------------------------------------------------------------
AUTHORITY = Authority.create()
ISSUED = AUTHORITY.issue(Party(Role.NODE, "n0", frozenset({"d"})), ["10.0.0.1"], days=1)


def body(pem: bytes) -> bytes:
    return base64.b64decode(b"".join(pem.split(b"\n")[1:-2]))


def text(der: bytes, kind: str = "CERTIFICATE") -> bytes:
    return f"-----BEGIN {kind}-----\n".encode() + base64.encodebytes(der) + f"-----END {kind}-----\n".encode()


certificates = (
    st.binary(max_size=60) | damaged(ISSUED.certificate) | damaged(body(ISSUED.certificate)).map(text)
)


@given(certificates)
def test_any_certificate_says_something_or_is_corrupt(pem: bytes) -> None:
    try:
        found = details(pem, "x.crt")
    except CorruptError as error:
        assert error.object == "x.crt"
    else:
        assert found.party is None or found.party.role in Role


@given(certificates)
def test_any_pair_fits_together_or_is_refused(pem: bytes) -> None:
    for pair in (
        dataclasses.replace(ISSUED, certificate=pem),
        dataclasses.replace(ISSUED, ca=pem),
        dataclasses.replace(ISSUED, private_key=pem),
        Pem(pem, ISSUED.private_key, pem),
    ):
        try:
            check_pem(pair, "x.crt", "x.key", "ca.crt")
        except InvalidArgumentError as error:
            assert error.object in ("x.crt", "x.key", "ca.crt")


KEY_KIND = ISSUED.private_key.split(b"-----")[1].removeprefix(b"BEGIN ").decode()


@given(damaged(AUTHORITY.pem) | st.binary(max_size=60) | damaged(body(ISSUED.private_key)))
def test_any_authority_is_one_or_corrupt(pem: bytes) -> None:
    for whole in (pem, AUTHORITY.certificate_pem + text(pem, KEY_KIND)):
        try:
            Authority.load(whole, "authority.pem")
        except CorruptError as error:
            assert error.object == "authority.pem"


@given(
    st.lists(st.text(max_size=30) | st.sampled_from(["medes://node/a", "medes://domain/d", "medes://node/"]))
)
def test_any_names_are_one_party_or_nobody(uris: list[str]) -> None:
    party = party_of(uris)
    named = [u for u in uris if u.startswith("medes://") and not u.startswith("medes://domain/")]
    assert (party is not None) == (len(named) == 1 and named[0].split("/")[2] in {r.value for r in Role})
    if party is not None:
        try:
            party.check()
        except MedesError as error:
            assert isinstance(error, InvalidArgumentError)
