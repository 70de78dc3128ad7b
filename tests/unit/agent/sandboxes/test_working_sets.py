"""Working sets: learnt, merged, kept."""

from __future__ import annotations

from pathlib import Path

from medes.agent.sandboxes.working_sets import (
    HOLDOUT_PAGES,
    HOLDOUT_SLICES_MIN,
    WorkingSet,
    WorkingSetStore,
    pack_pages,
    unpack_pages,
)


def pages(*numbers: int) -> list[tuple[int, int]]:
    return [(n >> 8, n) for n in numbers]


def test_packed_pages_come_back() -> None:
    some = pages(5, 1 << 20, 3)
    assert unpack_pages(pack_pages(some)) == some
    assert unpack_pages(pack_pages(some)[:-1]) == some[:-1]


def test_what_the_first_restore_touched_is_the_next_ones_prefetch_in_its_order() -> None:
    ws = WorkingSet()
    ws.merge(pages(9, 2, 7))
    packed, holdout = ws.prefetch()
    assert [p for p in pages(9, 2, 7) if p not in holdout] == unpack_pages(packed)
    assert set(unpack_pages(packed)) | holdout == set(unpack_pages(ws.exact())) == set(pages(9, 2, 7))


def test_a_page_that_is_no_longer_touched_goes_and_one_that_is_stays() -> None:
    ws = WorkingSet()
    wanted, stale = pages(*range(100)), pages(*range(1000, 1100))
    ws.merge(wanted + stale)
    for _ in range(HOLDOUT_SLICES_MIN * 8):
        packed, holdout = ws.prefetch()
        prefetched = set(unpack_pages(packed))
        ws.merge([p for p in wanted if p not in prefetched], holdout)
    packed, holdout = ws.prefetch()
    left = set(unpack_pages(packed)) | holdout
    assert left == set(wanted)


def test_probing_is_rare_while_it_is_confirmed_and_comes_back_with_drift() -> None:
    ws = WorkingSet()
    wanted, others = pages(*range(2000)), pages(*range(5000, 7000))

    def restore(touched: list[tuple[int, int]]) -> int:
        packed, holdout = ws.prefetch()
        prefetched = set(unpack_pages(packed))
        ws.merge([p for p in touched if p not in prefetched], holdout)
        return len(holdout)

    assert all(restore(wanted) < HOLDOUT_PAGES // 4 for _ in range(50))
    order = [p for p in unpack_pages(ws.prefetch()[0]) if p in set(wanted)]
    assert order == sorted(order)  # that a holdout faulted early says nothing about when it is touched
    restore(wanted + others[:100])  # some drift changes nothing
    assert restore(wanted) < HOLDOUT_PAGES // 4
    restore(others)
    assert restore(others) > HOLDOUT_PAGES // 2
    for _ in range(300):
        restore(others)
    assert restore(others) < HOLDOUT_PAGES // 4


def test_a_set_that_is_not_touched_any_more_is_probed_widely_again() -> None:
    ws = WorkingSet()
    sizes = []
    for n in range(60):
        _, holdout = ws.prefetch()
        sizes.append(len(holdout))
        faulted = pages(*range(3000)) if n == 0 else sorted(holdout) if n < 30 else []
        ws.merge(faulted, holdout)
    assert max(sizes[20:30]) < HOLDOUT_PAGES // 4
    assert max(sizes[30:]) > HOLDOUT_PAGES // 2


def test_working_sets_survive_on_disk_and_damage_starts_a_new_one(tmp_path: Path) -> None:
    store = WorkingSetStore(tmp_path)
    store.get("d", "f").merge(pages(1, 2, 3))
    store.save("d", "f")
    again = WorkingSetStore(tmp_path)
    assert unpack_pages(again.get("d", "f").exact()) == pages(1, 2, 3)
    assert len(again.get("other", "f")) == 0
    (file,) = tmp_path.glob("*.ws")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert len(WorkingSetStore(tmp_path).get("d", "f")) == 0
