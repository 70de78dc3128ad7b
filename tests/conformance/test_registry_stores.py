"""One conformance suite over every registry store."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medes.controller.registry import store as store_module
from medes.controller.registry.redis_records import BASES, base_key
from medes.controller.registry.redis_store import RedisStore
from medes.controller.registry.store import MemoryStore, RegistryStore
from medes.errors import (
    AlreadyExistsError,
    LimitExceededError,
    MedesError,
    PermissionDeniedError,
    StoreUnreachableError,
)
from medes.types import AddressRange, BaseDescriptor
from tests.conformance.store_cases import StoreCase, cases
from tests.support.fingerprints import K, hashes, located, positions
from tests.support.redis_server import redis_server

PAGES = 5


def base(
    base_id: int, node: str = "n1", domain: str = "d", function: str = "f", pages: int = PAGES
) -> BaseDescriptor:
    return BaseDescriptor(base_id, (node,), domain, function, pages, (AddressRange(4096, 1 << 40),), False)


def held_by(base_id: int, *nodes: str) -> BaseDescriptor:
    return replace(base(base_id), holders=nodes)


def publish(store: RegistryStore, b: BaseDescriptor, seed: int | None = None) -> None:
    store.publish(b, hashes(b.base_id if seed is None else seed, b.page_count), positions(b.page_count), K)


class StoreContract:
    """What every registry store must do."""

    @pytest.fixture
    def store(self) -> Iterator[RegistryStore]:
        raise NotImplementedError

    def test_lookup_names_base_page_and_position(self, store: RegistryStore) -> None:
        publish(store, base(7))
        found = store.lookup("d", hashes(7, PAGES), K)
        assert found.bases == (base(7),)
        where = positions(PAGES)
        for page, samples in enumerate(located(found.locations)):
            for sample, locations in enumerate(samples):
                assert locations == {(0, page, where[page * K + sample])}

    def test_what_is_not_there_has_no_location(self, store: RegistryStore) -> None:
        publish(store, base(7))
        for domain, seed in (("d", 8), ("other", 7), ("", 7)):
            found = store.lookup(domain, hashes(seed, 3), K)
            assert found.locations == b"\xff" * (3 * K * 2 * 8)
            assert found.bases == ()
        assert store.lookup("d", b"", K).locations == b""

    def test_zero_means_no_sample(self, store: RegistryStore) -> None:
        store.publish(base(7, pages=1), bytes(8 * K), positions(1), K)
        assert located(store.lookup("d", bytes(8 * K), K).locations) == [[set()] * K]

    def test_domains_do_not_see_each_other(self, store: RegistryStore) -> None:
        publish(store, base(1, domain="a"), seed=5)
        publish(store, base(2, domain="b"), seed=5)
        assert store.lookup("a", hashes(5, PAGES), K).bases == (base(1, domain="a"),)
        assert store.lookup("b", hashes(5, PAGES), K).bases == (base(2, domain="b"),)

    def test_two_bases_with_one_hash_are_both_found(self, store: RegistryStore) -> None:
        publish(store, base(1), seed=5)
        publish(store, base(2, node="n2"), seed=5)
        found = store.lookup("d", hashes(5, PAGES), K)
        assert {b.base_id for b in found.bases} == {1, 2}
        assert all(len(s) == 2 for page in located(found.locations) for s in page)

    def test_publishing_again_changes_nothing_and_contents_are_final(self, store: RegistryStore) -> None:
        publish(store, base(1))
        publish(store, base(1))
        assert (store.stats().bases, store.stats().base_pages) == (1, PAGES)
        with pytest.raises(AlreadyExistsError, match="n1"):
            publish(store, base(1, node="n2"))
        with pytest.raises(AlreadyExistsError):
            publish(store, base(1), seed=99)
        assert store.lookup("d", hashes(1, PAGES), K).bases == (base(1),)

    def test_retire(self, store: RegistryStore) -> None:
        publish(store, base(1))
        publish(store, base(2))
        with pytest.raises(PermissionDeniedError):
            store.retire(1, "n2")
        assert store.retire(1, "n1")
        assert not store.retire(1, "n1")
        assert store.lookup("d", hashes(1, PAGES), K).bases == ()
        assert store.lookup("d", hashes(2, PAGES), K).bases == (base(2),)
        publish(store, base(1))
        assert store.lookup("d", hashes(1, PAGES), K).bases == (base(1),)

    def test_retire_node_takes_only_its_bases(self, store: RegistryStore) -> None:
        for i in range(1, 5):
            publish(store, base(i, node=f"n{i % 2}", domain=f"d{i}"))
        assert store.retire_node("n1") == 2
        assert store.retire_node("n1") == 0
        assert {b.base_id for b in store.bases()} == {2, 4}
        assert store.lookup("d1", hashes(1, PAGES), K).bases == ()
        assert store.lookup("d2", hashes(2, PAGES), K).bases == (base(2, "n0", "d2"),)

    def test_a_holder_that_leaves_takes_itself_out_and_the_last_one_the_base(
        self, store: RegistryStore
    ) -> None:
        publish(store, held_by(1, "n1", "n2", "n3"))
        publish(store, base(2, node="n2"))
        publish(store, base(1, node="n2"))
        assert store.lookup("d", hashes(1, PAGES), K).bases == (held_by(1, "n1", "n2", "n3"),)
        with pytest.raises(PermissionDeniedError, match="n1, n2, n3"):
            store.retire(1, "n4")
        with pytest.raises(AlreadyExistsError, match="n1, n2, n3"):
            publish(store, base(1, node="n4"))
        assert store.retire(1, "n1")
        assert store.lookup("d", hashes(1, PAGES), K).bases == (held_by(1, "n2", "n3"),)
        with pytest.raises(PermissionDeniedError):
            store.retire(1, "n1")
        assert store.retire_node("n1") == 0
        assert store.retire_node("n2") == 2
        assert store.bases() == [held_by(1, "n3")]
        assert (store.base_count("f", "d"), store.stats().hashes) == (1, PAGES * K)
        assert store.retire_node("n3") == 1
        assert (store.bases(), store.base_count("f", "d"), store.stats().hashes) == ([], 0, 0)

    def test_counts_and_stats(self, store: RegistryStore) -> None:
        assert store.stats() == replace(store.stats(), bases=0, base_pages=0, hashes=0)
        publish(store, base(1))
        publish(store, base(2, function="g"))
        publish(store, base(3, domain="e"))
        assert (store.base_count("f", "d"), store.base_count("g", "d"), store.base_count("f", "e")) == (
            1,
            1,
            1,
        )
        assert store.base_count("f", "nowhere") == 0
        stats = store.stats()
        assert (stats.bases, stats.base_pages, stats.hashes) == (3, 3 * PAGES, 3 * PAGES * K)
        store.retire(1, "n1")
        assert store.base_count("f", "d") == 0
        assert store.stats().hashes == 2 * PAGES * K

    def test_a_node_has_a_bound(self, store: RegistryStore, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(store_module, "BASES_PER_NODE_MAX", 2)
        publish(store, base(1))
        publish(store, base(2))
        with pytest.raises(LimitExceededError):
            publish(store, base(3))
        publish(store, base(3, node="n2"))
        assert {b.base_id for b in store.bases()} == {1, 2, 3}

    def test_lookups_beside_publish_and_retire_name_only_known_bases(self, store: RegistryStore) -> None:
        """Slots of an answer always have their base, and nothing raises, however calls interleave."""
        errors: list[BaseException] = []
        stop = threading.Event()
        publish(store, base(100), seed=5)

        def guarded(work: Callable[[], None]) -> None:
            try:
                work()
            except BaseException as error:
                errors.append(error)
                stop.set()

        def look() -> None:
            while not stop.is_set():
                found = store.lookup("d", hashes(5, PAGES), K)
                slots = {x[0] for page in located(found.locations) for s in page for x in s}
                assert slots == set(range(len(found.bases))) or not slots

        def change() -> None:
            for i in range(30):
                publish(store, base(i % 3 + 1), seed=5)
                store.retire(i % 3 + 1, "n1")

        readers = [threading.Thread(target=guarded, args=(look,)) for _ in range(2)]
        for reader in readers:
            reader.start()
        guarded(change)
        stop.set()
        for reader in readers:
            reader.join(30)
        assert errors == []
        assert {b.base_id for b in store.lookup("d", hashes(5, PAGES), K).bases} == {100}

    def test_leases(self, store: RegistryStore) -> None:
        publish(store, base(1, node="alive"))
        store.renew(["alive"], 60)
        assert store.orphans() == set()

    def test_a_silent_node_takes_its_bases_along(self, store: RegistryStore) -> None:
        publish(store, base(1))
        store.take("n1", 60)
        assert store.retire_silent("n1") == 1
        assert store.bases() == []

    def test_close_is_idempotent(self, store: RegistryStore) -> None:
        store.close()
        store.close()


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
class TestStores(StoreContract):
    @pytest.fixture
    def store(self, case: type[StoreCase], tmp_path: Path) -> Iterator[RegistryStore]:
        store = case().open(tmp_path)
        yield store
        store.close()


def test_a_failed_insert_leaves_no_trace_in_memory() -> None:
    store = MemoryStore()
    with pytest.raises((MedesError, ValueError)):
        store.publish(base(1), hashes(1, PAGES)[:-3], positions(PAGES), K)
    assert store.bases() == []
    assert store.base_count("f", "d") == 0
    publish(store, base(1))
    assert store.lookup("d", hashes(1, PAGES), K).bases == (base(1),)


@pytest.fixture(scope="module")
def plain_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture(scope="module")
def redis_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_server(tmp_path_factory.mktemp("cluster"), clustered=True) as url:
        yield url


class TestRedisStore(StoreContract):
    @pytest.fixture
    def redis_url(self, plain_redis: str) -> str:
        return plain_redis

    @pytest.fixture
    def store(self, redis_url: str) -> Iterator[RegistryStore]:
        store = RedisStore(redis_url)
        store._redis.flushall()
        yield store
        store.close()

    def keys(self, store: RegistryStore) -> set[str]:
        assert isinstance(store, RedisStore)
        return {k.decode() for k in store._redis.keys("*")}

    def test_it_outlives_its_controller(self, store: RegistryStore, redis_url: str) -> None:
        publish(store, base(1))
        store.close()
        again = RedisStore(redis_url)
        assert again.bases() == [base(1)]
        assert again.lookup("d", hashes(1, PAGES), K).bases == (base(1),)
        again.close()

    def test_nothing_stays_behind(self, store: RegistryStore) -> None:
        for i in range(1, 4):
            publish(store, base(i, domain=f"d{i % 2}"), seed=5)
        store.retire_node("n1")
        assert {k for k in self.keys(store) if not k.endswith(":next")} == set()

    def test_nodes_without_a_lease_are_orphans(self, store: RegistryStore) -> None:
        publish(store, base(1, node="gone"))
        publish(store, base(2, node="alive"))
        store.renew(["alive"], 60)
        store.renew(["gone"], 0.001)
        time.sleep(0.05)
        assert store.orphans() == {"gone"}

    def test_a_record_from_before_there_were_several_holders_is_read(self, store: RegistryStore) -> None:
        assert isinstance(store, RedisStore)
        publish(store, base(1))
        publish(store, held_by(2, "n1", "n2"))
        one, two = (json.loads(store._redis.hget(BASES, base_key(i)))["base"] for i in (1, 2))
        assert (one["node_id"], one.get("holders")) == ("n1", None), "what a controller from before reads"
        assert (two["holders"], two.get("node_id")) == (["n1", "n2"], None)
        record = {"base": one, "mark": 1, "state": "ready"}
        store._redis.hset(BASES, base_key(1), json.dumps(record))
        assert base(1) in store.bases()

    def test_holders_that_leave_at_once_by_several_controllers_leave_nothing(
        self, store: RegistryStore, redis_url: str
    ) -> None:
        nodes = [f"n{i}" for i in range(8)]
        others = [RedisStore(redis_url) for _ in nodes]
        for _ in range(5):
            publish(store, held_by(1, *nodes))
            with ThreadPoolExecutor(len(nodes)) as pool:
                assert all(pool.map(lambda one, node: one.retire(1, node), others, nodes))
            assert {k for k in self.keys(store) if not k.endswith(":next")} == set()
        for other in others:
            other.close()

    def test_a_node_that_moved_to_another_controller_keeps_its_bases(
        self, store: RegistryStore, redis_url: str
    ) -> None:
        other = RedisStore(redis_url)
        publish(store, base(1))
        store.take("n1", 60)
        other.take("n1", 0.2)
        assert store.renew(["n1"], 60) == set(), "left to the other"
        assert store.retire_silent("n1") == 0
        assert store.bases() == [base(1)]
        time.sleep(0.25)
        assert store.orphans() == {"n1"}, "the other has not renewed it"
        assert store.renew(["n1"], 60) == {"n1"}
        assert other.retire_silent("n1") == 0
        assert store.retire_silent("n1") == 1
        other.close()

    @pytest.mark.parametrize("calls_until_death", range(1, 10))
    def test_a_controller_killed_while_a_holder_leaves(
        self, store: RegistryStore, redis_url: str, calls_until_death: int
    ) -> None:
        publish(store, held_by(1, "n1", "n2"))
        victim = RedisStore(redis_url)
        victim._redis = DiesAfter(victim._redis, calls_until_death)
        with contextlib.suppress(Died):
            victim.retire_node("n1")
        store.retire_node("n1")
        assert store.lookup("d", hashes(1, PAGES), K).bases == (held_by(1, "n2"),)
        assert store.retire_node("n2") == 1
        assert {k for k in self.keys(store) if not k.endswith(":next")} == set()

    @pytest.mark.parametrize("calls_until_death", range(1, 12))
    def test_a_controller_killed_anywhere_leaves_nothing_that_the_next_cannot_finish(
        self, store: RegistryStore, redis_url: str, calls_until_death: int
    ) -> None:
        assert isinstance(store, RedisStore)
        publish(store, base(9), seed=9)
        for work in (lambda s: publish(s, base(1), seed=5), lambda s: s.retire(1, "n1")):
            victim = RedisStore(redis_url)
            victim._redis = DiesAfter(victim._redis, calls_until_death)
            with contextlib.suppress(Died):
                work(victim)
            # Whatever it left, a lookup names only bases that can be named.
            found = store.lookup("d", hashes(5, PAGES), K)
            slots = {x[0] for page in located(found.locations) for s in page for x in s}
            assert slots == set(range(len(found.bases)))
            work(store)
            assert {b.base_id for b in store.lookup("d", hashes(9, PAGES), K).bases} == {9}
            expected = {1} if 1 in {b.base_id for b in store.bases()} else set()
            assert {b.base_id for b in store.lookup("d", hashes(5, PAGES), K).bases} == expected
        assert {b.base_id for b in store.bases()} == {9}
        assert store.stats().hashes == PAGES * K
        assert store.retire_node("n1") == 1
        assert {k for k in self.keys(store) if not k.endswith(":next")} == set()

    def test_no_redis_is_an_error_of_the_catalogue(self, tmp_path: Path) -> None:
        with pytest.raises(StoreUnreachableError, match="Redis does not answer"):
            RedisStore(f"unix://{tmp_path}/none.sock")


class Died(BaseException):
    """Stands for kill -9: no handler of the store's may catch it."""


class DiesAfter:
    """A Redis client that works for so many calls."""

    def __init__(self, client: Any, calls: int) -> None:
        self._client, self._left = client, calls

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            if self._left <= 0:
                raise Died
            self._left -= 1
            return getattr(self._client, name)(*arguments, **options)

        return call


class TestRedisCluster(TestRedisStore):
    """The same on a Cluster of one node: every key and script must respect the hash slots."""

    @pytest.fixture
    def redis_url(self, redis_cluster: str) -> str:
        return redis_cluster
