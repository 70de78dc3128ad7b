"""The fault-injection decorator's modes, and what every transport must do under each of them.

Modes in TRANSPARENT must not be noticed by a caller: the whole conformance suite runs under them. The others show, each
in its own way; FaultConformance says how.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from medes import errors, native
from medes.native import PAGE_BYTES
from tests.support.page_links import LARGE, PAGES, SMALL, Link, SlabWorld

Wrap = Callable[[native.PageReader], native.PageReader]

TRANSPARENT: dict[str, Wrap] = {
    "undisturbed": lambda reader: reader,
    "delays": lambda reader: native.failing_reader(reader, seed=3, delay_max_us=2000),
    "reordering": lambda reader: native.failing_reader(reader, seed=3, reorder=True),
    "failures and retry": lambda reader: native.retry_reader(
        native.failing_reader(reader, seed=5, fail=0.02), attempts=8
    ),
    "damage found and retry": lambda reader: native.retry_reader(
        native.failing_reader(reader, seed=5, corrupt=0.02, corrupt_found=True), attempts=8
    ),
    "all of these": lambda reader: native.retry_reader(
        native.failing_reader(
            reader, seed=7, fail=0.01, corrupt=0.01, corrupt_found=True, delay_max_us=500, reorder=True
        ),
        attempts=8,
    ),
}


class Encoded:
    """An image of changed pages of LARGE, encoded against it, and bases read in whatever way."""

    PAGES = 300

    def __init__(self, world: SlabWorld) -> None:
        self.world = world
        self.data = bytearray(world.data[LARGE][: self.PAGES * PAGE_BYTES])
        for page in range(self.PAGES):
            self.data[page * PAGE_BYTES + page % PAGE_BYTES] ^= 0xFF
        self.image = native.MemoryImage.from_buffer(bytes(self.data))
        prints = world.slabs[LARGE].fingerprint()
        index = native.FingerprintIndex()
        index.insert(LARGE, prints.hashes, prints.positions, prints.samples_per_page)
        own = native.fingerprint(self.image)
        self.plan = native.plan_windows(self.image, own, index.lookup(own.hashes, own.samples_per_page))

    def remote(self, reader: native.PageReader) -> native.BaseSet:
        slab, bases = self.world.slabs[LARGE], native.BaseSet()
        bases.add_remote(LARGE, slab.page_count, slab.ranges, slab.value_only, reader)
        return bases

    def encode(self, bases: native.BaseSet | None = None) -> native.EncodedImage:
        """Against the mapped slab unless a set is given."""
        if bases is None:
            bases = native.BaseSet()
            bases.add_local(self.world.slabs[LARGE])
        return native.encode(self.image, self.plan, bases)

    def rebuild(self, encoded: native.EncodedImage, bases: native.BaseSet) -> tuple[int, int]:
        """Decodes every page: how many came out right, and how many were refused as corrupt. Wrong bytes fail."""
        right = refused = 0
        for page in range(self.PAGES):
            try:
                got = encoded.decode(page, bases)
            except errors.CorruptError:
                refused += 1
                continue
            assert got == bytes(self.data[page * PAGE_BYTES : (page + 1) * PAGE_BYTES]), f"page {page}"
            right += 1
        return right, refused


class FaultConformance:
    """A subclass provides `link`: an undisturbed one."""

    def test_a_dropped_batch_ends_with_its_time_and_harms_no_other(self, link: Link) -> None:
        faulty = native.failing_reader(link.reader, seed=2, drop=0.5)
        reads = [(LARGE, page * PAGE_BYTES, PAGE_BYTES) for page in range(0, 64, 3)]
        outcomes = []
        for _ in range(8):
            begun_s = time.monotonic()
            answers = faulty.read_batch(reads, 1.0)
            codes = {code for code, _ in answers}
            assert len(codes) == 1, "a batch is lost as a whole"
            outcomes.append(codes.pop())
            if outcomes[-1] == "ok":
                assert [d for _, d in answers] == [link.world.expect(*read) for read in reads]
            else:
                assert time.monotonic() - begun_s >= 1.0
        assert set(outcomes) == {"ok", "deadline_exceeded"}
        assert link.reader.read(SMALL, 0, 4096) == link.world.expect(SMALL, 0, 4096)

    def test_a_batch_that_is_late_is_given_up_without_writing_later(self, link: Link) -> None:
        faulty = native.failing_reader(link.reader, seed=4, delay_max_us=200_000)
        reads = [(LARGE, page * PAGE_BYTES, PAGE_BYTES) for page in range(64)]
        codes = {code for _ in range(15) for code, _ in faulty.read_batch(reads, 0.1)}
        assert "deadline_exceeded" in codes <= {"ok", "deadline_exceeded"}
        answers = link.reader.read_batch(reads, 60.0)
        assert [d for _, d in answers] == [link.world.expect(*read) for read in reads]

    def test_a_peer_that_dies_in_mid_batch_leaves_what_came_before(self, link: Link) -> None:
        faulty = native.failing_reader(link.reader, seed=1, die_after_reads=30)
        reads = [(LARGE, page * PAGE_BYTES, PAGE_BYTES) for page in range(0, 40, 2)]
        assert {code for code, _ in faulty.read_batch(reads, 60.0)} == {"ok"}
        answers = faulty.read_batch(reads, 60.0)
        assert [code for code, _ in answers] == ["ok"] * 10 + ["peer_unreachable"] * 10
        assert [d for _, d in answers[:10]] == [link.world.expect(*read) for read in reads[:10]]
        retried = native.retry_reader(faulty, attempts=3)
        assert {code for code, _ in retried.read_batch(reads, 60.0)} == {"peer_unreachable"}
        assert retried.stats()["retries"] == 2 * len(reads)

    def test_a_peer_that_dies_while_a_base_is_read_leaves_right_pages_only(self, link: Link) -> None:
        work = Encoded(link.world)
        encoded = work.encode()
        bases = work.remote(native.failing_reader(link.reader, die_after_reads=100))
        right = unreachable = 0
        for page in range(work.PAGES):
            try:
                got = encoded.decode(page, bases)
            except errors.PeerUnreachableError:
                unreachable += 1
                continue
            assert got == bytes(work.data[page * PAGE_BYTES : (page + 1) * PAGE_BYTES])
            right += 1
        assert right >= 90 and unreachable >= 100

    def test_silent_damage_is_refused_when_pages_are_rebuilt(self, link: Link) -> None:
        work = Encoded(link.world)
        encoded = work.encode()
        damaging = native.failing_reader(link.reader, seed=6, corrupt=0.3)
        right, refused = work.rebuild(encoded, work.remote(damaging))
        assert right > 0 and refused > 0
        with pytest.raises(errors.CorruptError):
            encoded.verify(work.image, work.remote(native.failing_reader(link.reader, seed=6, corrupt=1.0)))

    def test_silent_damage_while_encoding_never_becomes_wrong_pages(self, link: Link) -> None:
        """The op may succeed, since it verifies with the bases it has; a restore with the right ones must notice."""
        work = Encoded(link.world)
        damaging = native.failing_reader(link.reader, seed=8, corrupt=1.0)
        try:
            encoded = work.encode(work.remote(damaging))
        except errors.CorruptError:
            return
        right, refused = work.rebuild(encoded, work.remote(link.reader))
        assert right + refused == work.PAGES

    def test_passing_damage_is_healed_by_a_retry(self, link: Link) -> None:
        work = Encoded(link.world)
        encoded = work.encode()
        damaging = native.failing_reader(link.reader, seed=9, corrupt=0.3, corrupt_found=True)
        _, refused = work.rebuild(encoded, work.remote(damaging))
        assert refused > 0, "without a retry it shows"
        healed = native.retry_reader(damaging, attempts=10)
        assert work.rebuild(encoded, work.remote(healed)) == (work.PAGES, 0)
        assert healed.stats()["retries"] > 0

    def test_statistics_say_what_carried_the_bytes(self, link: Link) -> None:
        faulty = native.retry_reader(native.failing_reader(link.reader, seed=5, fail=0.2), attempts=10)
        before = faulty.bytes_by_transport.get(link.transport, 0)
        bases = Encoded(link.world).remote(faulty)
        work = Encoded(link.world)
        assert work.rebuild(work.encode(), bases) == (work.PAGES, 0)
        assert set(bases.remote_pages_by_transport) == {link.transport}
        assert sum(bases.remote_pages_by_transport.values()) == bases.remote_pages_read >= work.PAGES
        assert faulty.bytes_by_transport[link.transport] - before == bases.remote_read_bytes

    def test_close_ends_batches_that_are_held_back(self, link: Link) -> None:
        faulty = native.failing_reader(link.reader, seed=4, delay_max_us=200_000)
        codes: list[str] = []

        def work() -> None:
            for _ in range(5):
                answers = faulty.read_batch([(LARGE, i % PAGES[LARGE] * 4096, 4096) for i in range(64)], 30.0)
                codes.extend(code for code, _ in answers)

        thread = threading.Thread(target=work)
        thread.start()
        time.sleep(0.05)
        faulty.close()
        thread.join(60)
        assert not thread.is_alive()
        assert set(codes) <= {"ok", "peer_unreachable"} and "peer_unreachable" in codes


def slabs(tmp_path_factory: pytest.TempPathFactory) -> SlabWorld:
    """Of a whole test module: no test changes them."""
    folder: Path = tmp_path_factory.mktemp("slabs")
    return SlabWorld(folder)
