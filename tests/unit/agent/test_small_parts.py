"""Admission, watchers, working sets, pressure, hooks and the decision point."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

from medes.agent import hooks, orphans
from medes.agent.admission import Admission
from medes.agent.pressure import available_ratio, judge, psi_some_avg10
from medes.agent.sandbox import SandboxEntry, SandboxSpec
from medes.agent.watch import WatchHub
from medes.agent.working_sets import (
    PROBE_PAGES,
    PROBE_SLICES_MIN,
    WorkingSet,
    WorkingSetStore,
    pack_pages,
    unpack_pages,
)
from medes.errors import BusyError, DeadlineExceededError, FunctionError, LimitExceededError
from medes.policy.lifecycle import Action, Periods, View, decide, under_pressure
from medes.types import Sandbox, SandboxEvent
from medes.types import SandboxState as S


# --- admission ---------------------------------------------------------------------------------------------
async def test_admission_runs_so_many_and_queues_the_rest_in_order() -> None:
    admission, order = Admission(2), []

    async def one(n: int) -> None:
        await admission.acquire(10.0)
        order.append(n)

    tasks = [asyncio.create_task(one(n)) for n in range(5)]
    await asyncio.sleep(0.01)
    assert (order, admission.running, admission.queued) == ([0, 1], 2, 3)
    for _ in range(3):
        admission.release()
        await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    assert order == [0, 1, 2, 3, 4]
    assert admission.running == 2


async def test_admission_refuses_after_the_deadline_and_forgets_the_waiter() -> None:
    admission = Admission(1)
    await admission.acquire(1.0)
    with pytest.raises(BusyError, match="too long"):
        await admission.acquire(0.01, "s1")
    assert (admission.queued, admission.refused) == (0, 1)
    admission.release()
    await admission.acquire(0.0)
    assert admission.running == 1


async def test_admission_refuses_at_once_when_the_queue_is_full() -> None:
    admission = Admission(1, queued_max=1)
    await admission.acquire(1.0)
    waiter = asyncio.create_task(admission.acquire(10.0))
    await asyncio.sleep(0)
    with pytest.raises(BusyError, match="queued"):
        await admission.acquire(10.0)
    waiter.cancel()
    await asyncio.gather(waiter, return_exceptions=True)
    assert admission.queued == 0


async def test_a_demand_wake_delays_the_queue_but_is_never_refused() -> None:
    admission = Admission(1)
    admission.enter()
    admission.enter()
    waiter = asyncio.create_task(admission.acquire(10.0))
    await asyncio.sleep(0)
    admission.release()
    await asyncio.sleep(0)
    assert not waiter.done()
    admission.release()
    await waiter
    assert admission.running == 1


# --- watch -------------------------------------------------------------------------------------------------
def event(n: int, function: str = "f") -> SandboxEvent:
    return SandboxEvent(Sandbox(f"s{n}", function), S.WARM, "r", n)


async def test_watchers_see_their_function_only_and_end_with_the_hub() -> None:
    hub = WatchHub()
    seen: list[int] = []

    async def watch() -> None:
        async for e in hub.events("f"):
            seen.append(e.sequence)

    task = asyncio.create_task(watch())
    await asyncio.sleep(0)
    hub.publish(event(1))
    hub.publish(event(2, "other"))
    hub.publish(event(3))
    hub.close()
    await task
    assert seen == [1, 3]


async def test_a_watcher_that_falls_behind_is_told() -> None:
    hub = WatchHub(queue_max=2)
    stream = hub.events()
    first = asyncio.create_task(anext(stream))
    await asyncio.sleep(0)
    for n in range(5):
        hub.publish(event(n))
    assert (await first).sequence == 0
    assert (await anext(stream)).sequence == 1
    with pytest.raises(LimitExceededError, match="fell behind"):
        await anext(stream)


async def test_watchers_are_bounded() -> None:
    hub = WatchHub(watchers_max=1)
    stream = hub.events()
    first = asyncio.create_task(anext(stream))
    await asyncio.sleep(0)
    with pytest.raises(LimitExceededError, match="already 1"):
        await anext(hub.events())
    first.cancel()


# --- working sets ------------------------------------------------------------------------------------------
def pages(*numbers: int) -> list[tuple[int, int]]:
    return [(n >> 8, n) for n in numbers]


def test_packed_pages_come_back() -> None:
    some = pages(5, 1 << 20, 3)
    assert unpack_pages(pack_pages(some)) == some
    assert unpack_pages(pack_pages(some)[:-1]) == some[:-1]


def test_what_the_first_restore_touched_is_the_next_ones_prefetch_in_its_order() -> None:
    ws = WorkingSet()
    ws.merge(pages(9, 2, 7))
    packed, probe = ws.prefetch()
    assert [p for p in pages(9, 2, 7) if p not in probe] == unpack_pages(packed)
    assert set(unpack_pages(packed)) | probe == set(unpack_pages(ws.exact())) == set(pages(9, 2, 7))


def test_a_page_that_is_no_longer_touched_goes_and_one_that_is_stays() -> None:
    ws = WorkingSet()
    wanted, stale = pages(*range(100)), pages(*range(1000, 1100))
    ws.merge(wanted + stale)
    for _ in range(PROBE_SLICES_MIN * 8):
        packed, probe = ws.prefetch()
        prefetched = set(unpack_pages(packed))
        ws.merge([p for p in wanted if p not in prefetched], probe)
    packed, probe = ws.prefetch()
    left = set(unpack_pages(packed)) | probe
    assert left == set(wanted)


def test_probing_is_rare_while_it_is_confirmed_and_comes_back_with_drift() -> None:
    ws = WorkingSet()
    wanted, others = pages(*range(2000)), pages(*range(5000, 7000))

    def restore(touched: list[tuple[int, int]]) -> int:
        packed, probe = ws.prefetch()
        prefetched = set(unpack_pages(packed))
        ws.merge([p for p in touched if p not in prefetched], probe)
        return len(probe)

    assert all(restore(wanted) < PROBE_PAGES // 4 for _ in range(50))
    order = [p for p in unpack_pages(ws.prefetch()[0]) if p in set(wanted)]
    assert order == sorted(order)  # that a probe faulted early says nothing about when it is touched
    restore(wanted + others[:100])  # some drift changes nothing
    assert restore(wanted) < PROBE_PAGES // 4
    restore(others)
    assert restore(others) > PROBE_PAGES // 2
    for _ in range(300):
        restore(others)
    assert restore(others) < PROBE_PAGES // 4


def test_a_set_that_is_not_touched_any_more_is_probed_widely_again() -> None:
    ws = WorkingSet()
    sizes = []
    for n in range(60):
        _, probe = ws.prefetch()
        sizes.append(len(probe))
        faulted = pages(*range(3000)) if n == 0 else sorted(probe) if n < 30 else []
        ws.merge(faulted, probe)
    assert max(sizes[20:30]) < PROBE_PAGES // 4
    assert max(sizes[30:]) > PROBE_PAGES // 2


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


# --- pressure ----------------------------------------------------------------------------------------------
PSI_IDLE = "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"
PSI_BUSY = PSI_IDLE.replace("some avg10=0.00", "some avg10=12.50")
MEMINFO = "MemTotal:  1000 kB\nMemFree: 1 kB\nMemAvailable:  {} kB\n"


def test_pressure_by_limit_psi_and_available_memory() -> None:
    assert judge(96, 100, PSI_IDLE, "").high
    assert not judge(50, 100, PSI_IDLE, MEMINFO.format(10)).high
    assert judge(0, 0, PSI_BUSY, "").high
    assert judge(0, 0, "", MEMINFO.format(10)).high
    assert not judge(0, 0, "", MEMINFO.format(500)).high
    assert "unknown" in judge(0, 0, "", "").text


def test_files_that_make_no_sense_count_as_absent() -> None:
    assert psi_some_avg10("some avg10=much") is None
    assert available_ratio("MemTotal: 0 kB\nMemAvailable: 3 kB") is None


# --- hooks -------------------------------------------------------------------------------------------------
async def hook_server(path: Path, status: str) -> tuple[asyncio.AbstractServer, list[tuple[str, dict]]]:
    calls: list[tuple[str, dict]] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = int(next(x for x in head.split("\r\n") if x.startswith("Content-Length")).split(":")[1])
        calls.append((head.split("\r\n")[0], json.loads(await reader.readexactly(length))))
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode())
        await writer.drain()
        writer.close()

    return await asyncio.start_unix_server(answer, path), calls


def hooked(path: Path) -> SandboxEntry:
    return SandboxEntry(SandboxSpec("s1", "f", hook_address=str(path)), "n0", S.WARM, 0.0)


async def test_a_hook_that_never_answers_is_waited_for_less_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[float] = []

    async def late(address: str, phase: str, body: object, timeout_s: float, *, owner: int | None) -> None:
        given.append(timeout_s)
        if len(given) < 12:
            raise DeadlineExceededError("late")

    monkeypatch.setattr(hooks, "call", late)
    entry = hooked(tmp_path / "hook.sock")
    for _ in range(13):
        await hooks.try_call(entry, "before-dedup", {})
    assert given[:4] == [hooks.HOOK_TIMEOUT_S / 2**n for n in range(4)]
    assert sum(given[:8]) < 2 * hooks.HOOK_TIMEOUT_S
    assert min(given) == given[10] and given[12] == hooks.HOOK_TIMEOUT_S  # one that answers is forgiven


async def test_who_listens_at_a_users_hook_is_asked_again_at_the_call(tmp_path: Path) -> None:
    server, calls = await hook_server(tmp_path / "hook.sock", "204 No Content")
    async with server:
        with pytest.raises(FunctionError, match="not user 61001"):
            await hooks.call(str(tmp_path / "hook.sock"), "before-dedup", {}, owner=61001)
        await hooks.call(str(tmp_path / "hook.sock"), "before-dedup", {}, owner=os.geteuid())
    assert len(calls) == 1


async def test_the_hook_is_posted(tmp_path: Path) -> None:
    server, calls = await hook_server(tmp_path / "hook.sock", "204 No Content")
    async with server:
        await hooks.call(f"unix:{tmp_path / 'hook.sock'}", "before-dedup", {"sandbox_id": "s1"})
        await hooks.call(f"unix:{tmp_path / 'hook.sock'}", "after-restore", {"dedup_seconds": 1.5})
    assert calls == [
        ("POST /hooks/before-dedup HTTP/1.1", {"sandbox_id": "s1"}),
        ("POST /hooks/after-restore HTTP/1.1", {"dedup_seconds": 1.5}),
    ]


async def test_a_host_need_not_have_every_hook(tmp_path: Path) -> None:
    server, calls = await hook_server(tmp_path / "hook.sock", "404 Not Found")
    async with server:
        assert await hooks.try_call(hooked(tmp_path / "hook.sock"), "before-dedup", {}) == ""
    assert len(calls) == 1


async def test_a_hook_that_fails_is_reported_and_not_raised(tmp_path: Path) -> None:
    server, _ = await hook_server(tmp_path / "hook.sock", "500 Oops")
    async with server:
        with pytest.raises(FunctionError, match="500"):
            await hooks.call(str(tmp_path / "hook.sock"), "after-restore", {})
    assert "after-restore hook" in await hooks.try_call(hooked(tmp_path / "nobody"), "after-restore", {})


# --- decisions ---------------------------------------------------------------------------------------------
PERIODS = Periods(idle_s=10.0, keep_alive_s=100.0, keep_dedup_s=50.0)


def view(state: S, age_s: float, **more: object) -> View:
    return View("s1", state, age_s, PERIODS, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("seen", "action"),
    [
        (view(S.WARM, 9.9), Action.NONE),
        (view(S.WARM, 10.0), Action.DEDUP),
        (view(S.WARM, 100.0), Action.PURGE),
        (view(S.DEDUP, 49.0), Action.NONE),
        (view(S.DEDUP, 50.0), Action.PURGE),
        (view(S.RUNNING, 1e9), Action.NONE),
        (view(S.LOST, 1e9), Action.NONE),
        (view(S.WARM, 1e9, disabled=True), Action.NONE),
        (view(S.WARM, 19.9, idle_wakes=1), Action.NONE),
        (view(S.WARM, 20.0, idle_wakes=1), Action.DEDUP),
        (view(S.WARM, 39.9, idle_wakes=1, dedup_failures=1), Action.NONE),
        (view(S.WARM, 1e9, purge_kills=False), Action.DEDUP),
        (view(S.DEDUP, 1e9, purge_kills=False), Action.NONE),
    ],
)
def test_decisions(seen: View, action: Action) -> None:
    assert decide(seen) is action


def test_a_zero_idle_period_backs_off_as_well() -> None:
    eager = View("s1", S.WARM, 0.0, Periods(0.0, 100.0, 100.0))
    assert decide(eager) is Action.DEDUP
    failed = View("s1", S.WARM, 0.5, Periods(0.0, 100.0, 100.0), dedup_failures=1)
    assert decide(failed) is Action.NONE


def test_pressure_takes_the_longest_idle_first() -> None:
    views = [
        View("young", S.WARM, 1.0, PERIODS),
        View("old", S.WARM, 5.0, PERIODS),
        View("busy", S.RUNNING, 9.0, PERIODS),
        View("kept", S.WARM, 9.0, PERIODS, disabled=True),
        View("failing", S.WARM, 9.0, PERIODS, dedup_failures=2),
    ]
    assert under_pressure(views, 5) == ["old", "young"]
    assert under_pressure(views, 1) == ["old"]


def test_only_what_the_store_was_writing_is_temporary() -> None:
    """It is removed at a start; the file of a sandbox whose id has ".tmp-" in it is not, nor is a copy of one."""
    names = [
        "base-1.slab.tmp-17-0",
        "sandbox-a.tmp-17-0.medes",
        "sandbox-a.medes.tmp-old",
        "sandbox-a.tmp-1.medes",
    ]
    assert [orphans.is_temporary(Path(name)) for name in names] == [True, False, False, False]
