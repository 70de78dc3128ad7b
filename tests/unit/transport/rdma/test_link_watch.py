"""Fall-backs and broken connections are said in the log, at most once a minute a link."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from medes.transport.rdma.link_watch import QUIET_S, LinkWatch
from medes.transport.rdma.rdma_node import RdmaNode


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    caplog.clear()
    return found


def test_a_rise_is_said_once_a_minute_with_what_came_in_between(caplog: pytest.LogCaptureFixture) -> None:
    watch = LinkWatch()
    watch.look("n1", "d", {"fallbacks": 0, "breaks": 0}, 0.0)
    assert said(caplog) == []
    watch.look("n1", "d", {"fallbacks": 3, "breaks": 0}, 1.0)
    (line,) = said(caplog)
    assert line.startswith("3 reads from n1 (d)")
    for second in range(2, int(QUIET_S)):
        watch.look("n1", "d", {"fallbacks": 3 + second, "breaks": 0}, float(second))
    assert said(caplog) == []
    watch.look("n1", "d", {"fallbacks": 100, "breaks": 0}, 1.0 + QUIET_S)
    (line,) = said(caplog)
    assert line.startswith("97 reads")
    watch.look("n1", "d", {"fallbacks": 100, "breaks": 0}, 1000.0)
    assert said(caplog) == []


def test_links_and_kinds_are_told_apart(caplog: pytest.LogCaptureFixture) -> None:
    watch = LinkWatch()
    watch.look("n1", "d", {"fallbacks": 1, "breaks": 1}, 0.0)
    broke, fell_back = said(caplog)
    assert "n1 (d) broke" in broke and fell_back.startswith("1 reads")
    watch.look("n2", "d", {"fallbacks": 0, "breaks": 1}, 1.0)
    watch.look("n1", "e", {"fallbacks": 2, "breaks": 0}, 1.0)
    assert len(said(caplog)) == 2


def test_a_new_reader_of_a_link_counts_from_nothing(caplog: pytest.LogCaptureFixture) -> None:
    watch = LinkWatch()
    watch.look("n1", "d", {"fallbacks": 50, "breaks": 2}, 0.0)
    said(caplog)
    watch.forget("n1", "d")
    watch.look("n1", "d", {"fallbacks": 4, "breaks": 0}, QUIET_S)
    (line,) = said(caplog)
    assert line.startswith("4 reads")


def test_the_node_looks_at_the_links_of_a_port(caplog: pytest.LogCaptureFixture) -> None:
    class Combined:
        def stats(self) -> dict[str, int]:
            return {"fallbacks": 7, "breaks": 1}

    class Reader:
        def __init__(self) -> None:
            self.kept: list[int] | None = None

        def keep_regions(self, base_ids: list[int]) -> int:
            self.kept = base_ids
            return 3

    class Link:
        key = ("n1", "d")
        combined = Combined()

        def __init__(self) -> None:
            self.reader = Reader()

    node, link = RdmaNode([]), Link()
    links: Any = {(0, 1): link}
    node._links = links
    node._look_at_links(1, 0.0)
    assert said(caplog) == []
    node._look_at_links(0, 0.0)
    assert len(said(caplog)) == 2
    assert node.keep_regions("n2", {5}) == 0 and link.reader.kept is None
    assert node.keep_regions("n1", {5}) == 3 and link.reader.kept == [5]
    node._links = {}
    node.close()
