"""What a page transport's two sides owe each other and the agents between them. A subclass provides `pair`.

Whoever has a transport of their own runs this, PeerConformance and FaultConformance over it: see test_transports.py.
"""

from __future__ import annotations

import pytest

from medes.errors import InvalidArgumentError
from tests.support.page_links import DOMAIN, FOREIGN, LARGE, SMALL
from tests.support.transport_pair import READER, Pair


def carried(pair: Pair, reader: object) -> int:
    """Bytes that came by the transport itself."""
    return reader.bytes_by_transport.get(pair.reading.name, 0)  # type: ignore[attr-defined,no-any-return]


class AccessConformance:
    def test_pages_come_by_the_transport_itself(self, pair: Pair) -> None:
        reader = pair.attach()
        assert reader is not None
        assert reader.read(SMALL, 4096, 8192, 30.0) == pair.world.expect(SMALL, 4096, 8192)
        assert carried(pair, reader) == 8192 and reader.stats()["fallbacks"] == 0

    def test_a_refusal_leaves_the_caller_with_tcp(self, pair: Pair) -> None:
        assert pair.attach(refuse=True) is None
        assert pair.tcp.reader.read(SMALL, 0, 4096, 30.0) == pair.world.expect(SMALL, 0, 4096)

    def test_what_is_no_offer_is_refused(self, pair: Pair) -> None:
        for offer in (b"", b"\xff" * 3, bytes(4096)):
            with pytest.raises(InvalidArgumentError):
                answer = pair.loop.call(pair.holding.accept, READER, DOMAIN, offer, 0.0, 60.0)
                if answer is None:  # as good
                    raise InvalidArgumentError("refused")

    def test_other_domains_are_not_carried(self, pair: Pair) -> None:
        reader = pair.attach()
        assert reader is not None
        ((code, data),) = reader.read_batch([(FOREIGN, 0, 4096)], 30.0)
        assert (code, data) == ("not_found", b"") and carried(pair, reader) == 0

    def test_access_that_was_released_carries_nothing_more(self, pair: Pair) -> None:
        reader = pair.attach()
        assert reader is not None
        reader.read(SMALL, 0, 4096, 30.0)
        for _ in range(2):  # idempotent
            pair.loop.call(pair.holding.release, READER, DOMAIN)
        before = carried(pair, reader)
        assert reader.read(SMALL, 8192, 4096, 30.0) == pair.world.expect(SMALL, 8192, 4096)
        assert carried(pair, reader) == before and reader.stats()["fallbacks"] > 0

    def test_access_can_be_made_anew(self, pair: Pair) -> None:
        first, second = pair.attach(), pair.attach()
        assert first is not None and second is not None
        before = carried(pair, second)
        assert second.read(LARGE, 4096, 4096, 30.0) == pair.world.expect(LARGE, 4096, 4096)
        assert carried(pair, second) == before + 4096
        # The reader of before goes on, by whatever way.
        assert first.read(LARGE, 0, 4096, 30.0) == pair.world.expect(LARGE, 0, 4096)

    def test_a_base_that_was_withdrawn_is_gone_and_others_are_not(self, pair: Pair) -> None:
        reader = pair.attach()
        assert reader is not None
        pair.withdraw(SMALL)
        pair.loop.call(pair.holding.withdraw, SMALL)  # idempotent
        answers = reader.read_batch([(SMALL, 0, 16), (LARGE, 0, 16)], 30.0)
        assert [code for code, _ in answers] == ["not_found", "ok"]

    def test_a_base_that_was_published_later_is_read_when_its_news_were_heard(self, pair: Pair) -> None:
        pair.loop.call(pair.holding.withdraw, SMALL)
        reader = pair.attach()
        assert reader is not None
        assert pair.loop.call(pair.holding.publish, pair.world.slabs[SMALL], DOMAIN)
        news = pair.news(SMALL)
        if news:
            pair.loop.call(pair.reading.learn, "holder", DOMAIN, news)
        assert reader.read(SMALL, 0, 4096, 30.0) == pair.world.expect(SMALL, 0, 4096)
        assert carried(pair, reader) == 4096

    def test_news_that_cannot_be_read_are_ignored(self, pair: Pair) -> None:
        reader = pair.attach()
        assert reader is not None
        pair.loop.call(pair.reading.learn, "holder", DOMAIN, b"\xff" * 5)
        assert reader.read(SMALL, 0, 4096, 30.0) == pair.world.expect(SMALL, 0, 4096)

    def test_close_is_idempotent(self, pair: Pair) -> None:
        assert pair.attach() is not None
        for side in (pair.reading, pair.reading, pair.holding, pair.holding):
            side.close()
