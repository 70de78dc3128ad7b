"""A Redis whose contents somebody changes by hand: the registry answers in order or refuses with the record's name, tells no
base of another domain, and agents never run on wrong bytes for it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from medes.controller.registry.redis_records import (
    BASES,
    RECORD_BYTES_MAX,
    base_key,
    domain_tag,
    function_key,
)
from medes.controller.registry.redis_store import RedisStore
from medes.controller.registry.store import LOCATIONS_PER_HASH, NO_LOCATION
from medes.errors import InternalError, MedesError
from medes.types import SandboxState
from tests.conformance.test_registry_stores import PAGES, base, publish
from tests.support.cluster import Cluster, wait_until
from tests.support.counter_app import App
from tests.support.fingerprints import K, hashes
from tests.support.redis_server import redis_server

MINE, OURS, THEIRS = 7, 8, 9
TAG, THEIR_TAG = domain_tag("d"), domain_tag("theirs")
PRINTS = f"medes:prints:{MINE:x}"
Change = Callable[[Any], object]


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture
def client(redis_url: str) -> Iterator[Any]:
    redis = pytest.importorskip("redis")
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
        yield client


@pytest.fixture
def store(redis_url: str, client: Any) -> Iterator[RedisStore]:
    store = RedisStore(redis_url)
    publish(store, base(MINE))
    publish(store, base(OURS, node="n2"))
    publish(store, base(THEIRS, node="n3", domain="theirs"))
    yield store
    store.close()


def record(**changes: Any) -> Change:
    """The record of MINE with other fields: of the base by their name, of the record as _mark, _state."""

    def change(client: Any) -> None:
        fields = json.loads(client.hget(BASES, base_key(MINE)))
        for name, value in changes.items():
            (fields if name.startswith("_") else fields["base"])[name.removeprefix("_")] = value
        client.hset(BASES, base_key(MINE), json.dumps(fields))

    return change


def raw(data: bytes) -> Change:
    return lambda client: client.hset(BASES, base_key(MINE), data)


def of_type(key: str, kind: str) -> Change:
    def change(client: Any) -> None:
        client.delete(key)
        {"string": lambda: client.set(key, "x"), "list": lambda: client.lpush(key, "x")}[kind]()

    return change


def everywhere(key: str, value: bytes) -> Change:
    """Every field of a hash."""
    return lambda client: client.hset(key, mapping=dict.fromkeys(client.hkeys(key), value))


def swap(client: Any) -> None:
    one, other = client.hmget(BASES, [base_key(MINE), base_key(OURS)])
    client.hset(BASES, mapping={base_key(MINE): other, base_key(OURS): one})


def truncate(client: Any) -> None:
    client.hset(BASES, base_key(MINE), client.hget(BASES, base_key(MINE))[:-20])


CHANGES: dict[str, Change] = {
    "no json": raw(b"\xff\x00{"),
    "another value": raw(b"[1, 2]"),
    "nested": raw(b"[" * 60_000),
    "large": raw(b'{"base": "' + b"x" * RECORD_BYTES_MAX + b'"}'),
    "truncated": truncate,
    "swapped": swap,
    "page_count is text": record(page_count="many"),
    "page_count below 0": record(page_count=-1),
    "page_count huge": record(page_count=1 << 70),
    "page_count a number with a point": record(page_count=5.0),
    "mark is a list": record(_mark=[1]),
    "another state": record(_state="gone"),
    "state is missing": lambda c: raw(
        json.dumps({"base": json.loads(c.hget(BASES, base_key(MINE)))["base"]}).encode()
    )(c),
    "a field too many": record(more=1),
    "ranges": record(ranges=[{"begin": 5, "end": 4}]),
    "many ranges": record(ranges=[{"begin": 1, "end": 2}] * 900),
    "range of text": record(ranges=[{"begin": "a", "end": "b"}]),
    "node is a number": record(node_id=5),
    "node is long": record(node_id="n" * 5000),
    "another node": record(node_id="n2"),
    "another base": record(base_id=OURS),
    "another domain": record(domain="theirs"),
    "value_only is text": record(value_only="yes"),
    "slots of another domain's base": everywhere(f"{TAG}:slots", base_key(THEIRS)),
    "slots of no base": everywhere(f"{TAG}:slots", b"abc"),
    "slot_of": everywhere(f"{TAG}:slot_of", b"abc"),
    "slot_of empty": everywhere(f"{TAG}:slot_of", b""),
    "locations cut": everywhere(f"{TAG}:h", b"abc"),
    "locations long": everywhere(f"{TAG}:h", b"x" * 4096),
    "locations of 24 bytes": everywhere(f"{TAG}:h", b"\0" * 24),
    "locations in other slots": everywhere(f"{TAG}:h", b"\x01\x02\x03\x04\x05\x06\x07\x08" * 2),
    "next is text": lambda c: c.set(f"{TAG}:next", "abc"),
    "next is endless": lambda c: c.set(f"{TAG}:next", "1e400"),
    "next below 0": lambda c: c.set(f"{TAG}:next", "-7"),
    "prints cut": lambda c: c.set(PRINTS, c.get(PRINTS)[:-5]),
    "prints gone": lambda c: c.delete(PRINTS),
    "node's set": lambda c: c.sadd("medes:node:n1", b"", b"abc", b"x" * 100, base_key(THEIRS)),
    "node's set is huge": lambda c: c.sadd("medes:node:n1", *(base_key(n) for n in range(100, 20_100))),
    "function's set": lambda c: c.sadd(function_key("f", "d"), *(base_key(n) for n in range(100, 20_100))),
    **{
        f"{name} is a {kind}": of_type(key, kind)
        for kind in ("string", "list")
        for name, key in {
            "bases": BASES,
            "hashes": f"{TAG}:h",
            "slots": f"{TAG}:slots",
            "slot_of": f"{TAG}:slot_of",
            "next": f"{TAG}:next",
            "function": function_key("f", "d"),
            "prints": PRINTS,
            "node": "medes:node:n1",
        }.items()
    },
}


@pytest.mark.parametrize("what", CHANGES)
def test_every_call_answers_in_order_or_names_the_record(what: str, store: RedisStore, client: Any) -> None:
    CHANGES[what](client)
    answered = refused = 0

    def tried(call: Callable[[], Any]) -> Any:
        nonlocal answered, refused
        try:
            answer = call()
        except MedesError as error:
            assert not isinstance(error, InternalError), error
            assert error.object and error.object != "registry store", error
            refused += 1
            return None
        answered += 1
        return answer

    for seed in (MINE, OURS):
        found = tried(lambda s=seed: store.lookup("d", hashes(s, PAGES), K))
        if found is None:
            continue
        assert all(b.domain == "d" for b in found.bases)
        assert len(found.locations) == PAGES * K * LOCATIONS_PER_HASH * 8
        for i in range(0, len(found.locations), 8):
            location = found.locations[i : i + 8]
            assert location == NO_LOCATION or int.from_bytes(location[6:8], "little") < len(found.bases)
    listed = tried(store.bases)
    assert listed is None or all(b.page_count > 0 and b.holders for b in listed)
    tried(store.stats)
    tried(store.orphans)
    tried(lambda: store.base_count("f", "d"))
    tried(lambda: publish(store, base(MINE)))
    tried(lambda: publish(store, base(11)))
    tried(lambda: store.retire(MINE, "n1"))
    tried(lambda: store.retire_node("n1"))
    tried(lambda: store.retire_node("n2"))
    if " is a " not in what:  # one bad value, not a whole table
        assert answered > refused, "one bad record is not the end of the registry"
    if not what.startswith("bases is a"):
        found = store.lookup("theirs", hashes(THEIRS, PAGES), K)
        assert all(b.domain == "theirs" for b in found.bases), "other domains go on"


def test_a_base_whose_record_was_damaged_is_published_anew(store: RedisStore, client: Any) -> None:
    raw(b"nonsense")(client)
    assert [b.base_id for b in store.lookup("d", hashes(MINE, PAGES), K).bases] == []
    publish(store, base(MINE))
    assert [b.base_id for b in store.lookup("d", hashes(MINE, PAGES), K).bases] == [MINE]


@pytest.mark.live
def test_a_flushed_redis_is_filled_again(
    redis_url: str, client: Any, make_cluster: Callable[..., Cluster], make_app: Callable[..., App]
) -> None:
    """By the nodes, which the controller tells; a node that never heard of the base finds it."""
    cluster = make_cluster(nodes=2, controller_flags=(f"--store={redis_url}",))
    holder, user = cluster.agents
    first, app = make_app(4, seed=1), make_app(4, seed=2)
    with holder.client() as one, user.client() as two:
        one.register("f", pids=[first.pid], sandbox_id="a")
        one.dedup("a")
        wait_until(lambda: client.keys("medes:lease:*"), "leases are in Redis")
        time.sleep(1.0)  # and the controller has seen them there
        client.flushall()
        wait_until(lambda: client.hkeys(BASES), "the base is announced again")
        wait_until(lambda: "announcing everything again" in user.log_tail(), "the other node is told")
        wait_until(lambda: two.node().controller_connected, "the other node has joined again")
        two.register("f", pids=[app.pid], sandbox_id="b")
        assert two.dedup("b").report.base_bytes_added == 0
        assert "n1" in one.bases()[0].pins_by_node
        two.restore("b", eager=True)
        app.ask()


@pytest.mark.live
def test_agents_go_on(
    redis_url: str,
    client: Any,
    make_cluster: Callable[..., Cluster],
    make_app: Callable[..., App],
    tmp_path: Path,
) -> None:
    """Records of real bases are changed between a dedup and the next; every restore is right."""
    cluster = make_cluster(nodes=2, controller_flags=(f"--store={redis_url}",))
    holder, user = cluster.agents
    first, app = make_app(4, seed=1), make_app(4, seed=2)
    with holder.client() as one, user.client() as two:
        one.register("f", pids=[first.pid], sandbox_id="a")
        one.dedup("a")
        two.register("f", pids=[app.pid], sandbox_id="b")
        domain = one.get("a").domain
        tag = domain_tag(domain)
        (key,) = client.hkeys(BASES)
        good = client.hget(BASES, key)
        for change in (
            lambda: client.hset(BASES, key, good[:-10]),
            lambda: client.hset(BASES, key, good.replace(b'"n0"', b'"n1"')),
            lambda: client.hset(BASES, key, good.replace(b'"n0"', b'"n9"')),
            lambda: everywhere(f"{tag}:slots", b"12345678")(client),
            lambda: everywhere(f"{tag}:h", b"\x01\x02\x03\x04\x05\x06\x00\x00")(client),
            lambda: everywhere(f"{tag}:h", b"abc")(client),
            lambda: of_type(f"{tag}:h", "string")(client),
            lambda: of_type(BASES, "list")(client),
        ):
            change()
            two.dedup("b")
            report = two.restore("b", eager=True).report
            assert report is not None and report.was_dedup
            app.ask()
            wait_until(lambda: two.get("b").state is SandboxState.WARM, "its last page")
        one.restore("a", eager=True)
        first.ask()
    assert cluster.controller is not None and cluster.controller.process.poll() is None
    for agent in cluster.agents:
        assert "Traceback" not in agent.log.read_text()
