"""What every page transport must do, whatever carries the bytes. A subclass provides the `link` fixture.

What they must do under faults that show is in tests/conformance/transport_faults.py.
"""

from __future__ import annotations

import random
import threading

import pytest

from medes import errors
from medes.native import PAGE_BYTES
from tests.support.page_links import FOREIGN, LARGE, PAGES, SMALL, UNKNOWN, Link

Read = tuple[int, int, int]


def check(link: Link, reads: list[Read]) -> None:
    answers = link.reader.read_batch(reads, 60.0)
    assert [code for code, _ in answers] == ["ok"] * len(reads)
    for (base_id, offset, length), (_, data) in zip(reads, answers, strict=True):
        assert data == link.world.expect(base_id, offset, length)


class TransportConformance:
    """Run by tests/contract over local, tcp and tcp+tls, by tests/rdma/suite over rdma; each in all modes of the fault
    decorator that a caller must not notice."""

    batch_reads_max = 8192
    read_bytes_max = 8 << 20

    def test_names_itself(self, link: Link) -> None:
        assert link.reader.transport == link.transport

    @pytest.mark.parametrize(
        ("offset", "length"),
        [(0, 16), (16, 4096), (4096, 4096), (5 * 4096 + 4080, 32), (0, 24 * 4096), (24 * 4096 - 16, 16)],
    )
    def test_any_range_of_a_base(self, link: Link, offset: int, length: int) -> None:
        check(link, [(SMALL, offset, length)])

    def test_contiguous_batch(self, link: Link) -> None:
        check(link, [(LARGE, page * PAGE_BYTES, PAGE_BYTES) for page in range(64)])

    def test_scattered_batch_over_two_bases(self, link: Link) -> None:
        source = random.Random(1)
        reads: list[Read] = []
        for _ in range(100):
            base_id = source.choice([SMALL, LARGE])
            offset = source.randrange(0, (PAGES[base_id] - 1) * PAGE_BYTES, 16)
            reads.append((base_id, offset, source.choice([16, 64, 1024, PAGE_BYTES])))
        check(link, reads)

    def test_largest_batch(self, link: Link) -> None:
        check(link, [(LARGE, i % PAGES[LARGE] * PAGE_BYTES, PAGE_BYTES) for i in range(self.batch_reads_max)])

    def test_largest_read(self, link: Link) -> None:
        check(link, [(LARGE, 4096, self.read_bytes_max), (SMALL, 0, 16)])

    def test_status_is_per_read(self, link: Link) -> None:
        end = PAGES[SMALL] * PAGE_BYTES
        answers = link.reader.read_batch(
            [
                (SMALL, 0, 4096),
                (UNKNOWN, 0, 16),
                (SMALL, end - 16, 32),
                (SMALL, 1 << 63, 16),
                (LARGE, 0, 4096),
            ],
            10.0,
        )
        assert [code for code, _ in answers] == [
            "ok",
            "not_found",
            "invalid_argument",
            "invalid_argument",
            "ok",
        ]
        assert answers[0][1] == link.world.expect(SMALL, 0, 4096)
        assert answers[4][1] == link.world.expect(LARGE, 0, 4096)

    def test_other_domains_do_not_exist(self, link: Link) -> None:
        with pytest.raises(errors.NotFoundError):
            link.reader.read(FOREIGN, 0, 16)

    def test_limits_are_refused_before_anything_is_sent(self, link: Link) -> None:
        with pytest.raises(errors.LimitExceededError):
            link.reader.read(SMALL, 0, 0)
        with pytest.raises(errors.LimitExceededError):
            link.reader.read(SMALL, 0, (8 << 20) + 1)
        with pytest.raises(errors.LimitExceededError):
            link.reader.read_batch([(SMALL, 0, 16)] * 8193)
        with pytest.raises(errors.LimitExceededError):
            link.reader.read_batch([])
        check(link, [(SMALL, 0, 16)])

    def test_threads_share_a_reader(self, link: Link) -> None:
        failures: list[BaseException] = []

        def work(seed: int) -> None:
            source = random.Random(seed)
            try:
                for _ in range(20):
                    first = source.randrange(PAGES[LARGE] - 40)
                    check(link, [(LARGE, (first + i) * PAGE_BYTES, PAGE_BYTES) for i in range(0, 40, 2)])
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []

    def test_statistics_count_reads_and_bytes(self, link: Link) -> None:
        before = link.reader.stats()
        check(link, [(SMALL, 0, 4096), (SMALL, 8192, 4096)])
        after = link.reader.stats()
        assert after["batches"] - before["batches"] >= 1
        assert after["reads"] - before["reads"] >= 2
        assert after["bytes"] - before["bytes"] == 8192

    def test_close_is_idempotent_and_final(self, link: Link) -> None:
        check(link, [(SMALL, 0, 16)])
        link.reader.close()
        link.reader.close()
        with pytest.raises(errors.PeerUnreachableError):
            link.reader.read(SMALL, 0, 16)


class PeerConformance(TransportConformance):
    """What needs a peer of its own on top: slabs that go, peers that die."""

    def test_removed_slab_is_not_found(self, link: Link) -> None:
        check(link, [(SMALL, 0, 16), (LARGE, 0, 16)])
        link.remove_slab(SMALL)
        answers = link.reader.read_batch([(SMALL, 0, 16), (LARGE, 0, 16)], 30.0)
        assert [code for code, _ in answers] == ["not_found", "ok"]

    def test_killed_peer_ends_reads_in_flight(self, link: Link) -> None:
        check(link, [(SMALL, 0, 16)])
        outcomes: list[set[str]] = []
        started = threading.Event()

        def work() -> None:
            while True:
                answers = link.reader.read_batch([(LARGE, i * 4096, 4096) for i in range(512)], 30.0)
                started.set()
                for i, (code, data) in enumerate(answers):
                    assert code != "ok" or data == link.world.expect(LARGE, i * 4096, 4096)
                if any(code != "ok" for code, _ in answers):
                    outcomes.append({code for code, _ in answers} - {"ok"})
                    return

        thread = threading.Thread(target=work)
        thread.start()
        started.wait(30)
        link.kill_peer()
        thread.join(60)
        assert not thread.is_alive()
        assert outcomes == [{"peer_unreachable"}]
