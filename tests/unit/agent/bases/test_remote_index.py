"""What an agent keeps of other nodes' bases: learnt once, found, bounded, forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest

from medes.agent.bases.remote_index import RemoteIndex
from medes.errors import NotFoundError
from medes.types import BaseDescriptor
from tests.support import fingerprints
from tests.support.fingerprints import K

PAGES = 2000
# Of one base of PAGES pages in an index of its own: more than its entries, less than two of them.
ONE_BYTES, TWO_BYTES = PAGES * K * 12, 2 * PAGES * K * 12


def base(base_id: int, domain: str = "d", node_id: str = "n0", pages: int = PAGES) -> BaseDescriptor:
    return BaseDescriptor(base_id=base_id, holders=(node_id,), domain=domain, function="f", page_count=pages)


class Holder:
    """Answers with fingerprints made of the base's id; can be held back and made to fail."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []
        self.started = asyncio.Event()
        self.gate: asyncio.Event | None = None
        self.error: Exception | None = None

    async def fetch(self, descriptor: BaseDescriptor, samples_per_page: int) -> tuple[bytes, bytes]:
        self.asked.append((descriptor.base_id, samples_per_page))
        self.started.set()
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        pages, k = descriptor.page_count, samples_per_page
        return fingerprints.hashes(descriptor.base_id, pages, k), fingerprints.positions(pages, k)


class Made:
    """An index with its holder and its tasks."""

    def __init__(self, limit_bytes: int = 1 << 30) -> None:
        self.holder = Holder()
        self.k = K
        self.tasks: list[asyncio.Task[None]] = []
        self.index = RemoteIndex(self.holder.fetch, self._run, self._spawn, lambda: self.k, limit_bytes)

    async def _run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.to_thread(function, *arguments)

    def _spawn(self, coroutine: Coroutine[Any, Any, None], name: str) -> None:
        self.tasks.append(asyncio.create_task(coroutine, name=name))

    async def settle(self) -> list[BaseException]:
        """Waits for what is under way; returns what failed."""
        results = await asyncio.gather(*self.tasks, return_exceptions=True)
        self.tasks.clear()
        return [r for r in results if r is not None]

    async def learn(self, *bases: BaseDescriptor) -> None:
        for b in bases:
            self.index.used(b.domain, [b])
            assert await self.settle() == []

    async def finds(self, base_id: int, domain: str = "d") -> bool:
        answer = await self.index.lookup(domain, fingerprints.hashes(base_id, 10, self.k), self.k)
        if answer is None:
            return False
        assert [b.base_id for b in answer.bases] == [base_id]
        rows = fingerprints.located(answer.locations, self.k)
        assert all(
            {(0, page, (page * self.k + j) * 7 % 253)} == s
            for page, r in enumerate(rows)
            for j, s in enumerate(r)
        )
        return True


async def test_a_used_base_is_learnt_once_and_found_in_its_domain_only() -> None:
    made = Made()
    assert not await made.finds(1)
    made.index.used("d", [base(1)])
    made.index.used("d", [base(1)])
    assert await made.settle() == []
    made.index.used("d", [base(1)])
    assert made.tasks == []
    assert made.holder.asked == [(1, K)]
    assert await made.finds(1)
    assert not await made.finds(1, "other")
    assert not await made.finds(2)
    assert made.index.used_bytes >= ONE_BYTES


async def test_a_base_that_is_said_to_be_of_another_domain_is_not_learnt() -> None:
    made = Made()
    made.index.used("d", [base(1, "other"), base(2)])
    assert await made.settle() == []
    assert (made.holder.asked, made.index.base_ids) == ([(2, K)], [2])


async def test_what_could_not_be_had_is_asked_for_at_the_next_use() -> None:
    made = Made()
    made.holder.error = NotFoundError("the base is retired", object="base 1")
    made.index.used("d", [base(1)])
    assert [type(e) for e in await made.settle()] == [NotFoundError]
    assert not await made.finds(1)
    made.holder.error = None
    await made.learn(base(1))
    assert await made.finds(1)


async def test_the_least_recently_used_bases_leave_first() -> None:
    made = Made(limit_bytes=3 * ONE_BYTES)
    await made.learn(base(1), base(2))
    assert made.index.base_ids == [1, 2]
    await made.learn(base(1), base(3))
    assert made.index.base_ids == [1, 3]
    assert made.index.used_bytes <= made.index.limit_bytes
    assert [await made.finds(i) for i in (1, 2, 3)] == [True, False, True]


async def test_a_node_that_does_not_answer_leaves_the_holders_of_its_bases() -> None:
    made = Made()
    both = replace(base(2), holders=("n0", "n1"))
    await made.learn(base(1), both, base(3, node_id="n1"))
    made.index.forget_node("n0")
    assert await made.settle() == []
    assert [await made.finds(i) for i in (1, 2, 3)] == [False, True, True]
    packed = await made.index.lookup("d", fingerprints.hashes(2, 10, K), K)
    assert packed is not None and packed.bases == (base(2, node_id="n1"),)


async def test_the_bound_is_one_for_all_domains() -> None:
    made = Made(limit_bytes=3 * ONE_BYTES)
    await made.learn(base(1, "d"), base(2, "e"), base(3, "f"))
    assert made.index.base_ids == [2, 3]
    assert not await made.finds(1, "d")
    assert await made.finds(3, "f")


async def test_a_base_that_can_never_fit_is_not_asked_for() -> None:
    made = Made(limit_bytes=ONE_BYTES)
    await made.learn(base(1))
    assert made.holder.asked == []
    await made.learn(base(1, pages=10))
    assert made.holder.asked == [(1, K)]


@pytest.mark.parametrize("forget", [lambda i: i.forget([1, 9]), lambda i: i.forget_node("n0")])
async def test_a_forgotten_base_is_not_found_and_costs_nothing(forget: Callable[[RemoteIndex], None]) -> None:
    made = Made()
    await made.learn(base(1), base(2, node_id="n1"))
    forget(made.index)
    assert not await made.finds(1)
    assert await made.settle() == []
    assert [await made.finds(i) for i in (1, 2)] == [False, True]
    assert made.index.used_bytes < TWO_BYTES
    made.index.forget([2])
    assert await made.settle() == []
    assert (made.index.used_bytes, made.index.base_ids) == (0, [])
    await made.learn(base(1))
    assert await made.finds(1)


@pytest.mark.parametrize(
    "forget", [lambda i: i.forget([1]), lambda i: i.forget_node("n0"), lambda i: i.clear()]
)
async def test_what_is_forgotten_on_its_way_does_not_arrive(forget: Callable[[RemoteIndex], None]) -> None:
    made = Made()
    gate = made.holder.gate = asyncio.Event()
    made.index.used("d", [base(1)])
    await made.holder.started.wait()
    forget(made.index)
    gate.set()
    assert await made.settle() == []
    assert not await made.finds(1)
    await made.learn(base(1))
    assert await made.finds(1)


async def test_another_number_of_samples_starts_anew() -> None:
    made = Made()
    await made.learn(base(1))
    made.k = 4
    made.index.clear()
    assert (made.index.used_bytes, made.index.base_ids) == (0, [])
    await made.learn(base(1))
    assert made.holder.asked == [(1, K), (1, 4)]
    assert await made.finds(1)


async def test_a_base_forgotten_while_it_is_entered_is_not_found() -> None:
    made = Made()
    entered = asyncio.Event()
    run = made.index._run

    async def forgetting(function: Callable[..., Any], *arguments: Any) -> Any:
        result = await run(function, *arguments)
        if not entered.is_set():
            entered.set()
            made.index.forget([1])
        return result

    made.index._run = forgetting
    made.index.used("d", [base(1)])
    await made.settle()
    await made.settle()
    assert entered.is_set()
    assert not await made.finds(1)
    assert made.index.used_bytes == 0
