from __future__ import annotations

from pathlib import Path

import pytest

from medes import native

V1_NO_LIMIT = 9223372036854771712


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    (tmp_path / "proc" / "7").mkdir(parents=True)
    swap_free(tmp_path / "proc", 0)
    return tmp_path / "proc"


def swap_free(proc: Path, free_kib: int) -> None:
    (proc / "meminfo").write_text(
        f"MemTotal:       4096 kB\nSwapTotal:      4096 kB\nSwapFree: {free_kib:11} kB\n"
    )


def v1(folder: Path, limit: int, used: int, cache: int = 0, slab: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.limit_in_bytes").write_text(f"{limit}\n")
    (folder / "memory.usage_in_bytes").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(
        f"inactive_file 0\nactive_file 0\ntotal_inactive_file {cache}\ntotal_active_file 0\nslab_reclaimable {slab}\n"
    )


def v2(folder: Path, limit: str, used: int, cache: int = 0, slab: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(
        f"anon 5\ninactive_file {cache}\nactive_file 1\nslab_reclaimable {slab}\n"
    )


def room(tmp_path: Path, pid: int = 7) -> int | None:
    return native.memory_room(pid, str(tmp_path), str(tmp_path / "proc"))


def test_v1_takes_the_least_room_on_the_way_up(tmp_path: Path, proc: Path) -> None:
    (proc / "7" / "cgroup").write_text("4:memory:/pod/box\n3:cpu:/\n0::/\n")
    v1(tmp_path / "memory", V1_NO_LIMIT, 10_000)
    v1(tmp_path / "memory/pod", 1000, 900, cache=300)
    v1(tmp_path / "memory/pod/box", 800, 100)
    assert room(tmp_path) == 400


def test_v2(tmp_path: Path, proc: Path) -> None:
    (proc / "7" / "cgroup").write_text("0::/pod/box\n")
    v2(tmp_path / "pod", "max", 900)
    v2(tmp_path / "pod/box", "800", 700, cache=49)
    assert room(tmp_path) == 150


def test_slab_that_can_be_reclaimed_is_free(tmp_path: Path, proc: Path) -> None:
    (proc / "7" / "cgroup").write_text("0::/box\n")
    v2(tmp_path / "box", "800", 700, cache=49, slab=30)
    assert room(tmp_path) == 180


@pytest.mark.parametrize(
    ("limit", "used", "expected"), [("max", 0, 2048), ("1500", 500, 1000), ("500", 900, 0)]
)
def test_what_can_be_swapped_out_is_free(
    tmp_path: Path, proc: Path, limit: str, used: int, expected: int
) -> None:
    """As much as the machine has, and the group may have."""
    (proc / "7" / "cgroup").write_text("0::/box\n")
    swap_free(proc, 2)
    v2(tmp_path / "box", "800", 799)
    (tmp_path / "box" / "memory.swap.max").write_text(f"{limit}\n")
    (tmp_path / "box" / "memory.swap.current").write_text(f"{used}\n")
    assert room(tmp_path) == 2 + expected  # two bytes of the group's own, one of them cache


def test_no_limit_is_none(tmp_path: Path, proc: Path) -> None:
    (proc / "7" / "cgroup").write_text("0::/box\n")
    v2(tmp_path / "box", "max", 700)
    assert room(tmp_path) is None
    assert room(tmp_path, 8) is None  # no such process


def test_a_group_over_its_limit_has_no_room(tmp_path: Path, proc: Path) -> None:
    (proc / "7" / "cgroup").write_text("0::/box\n")
    v2(tmp_path / "box", "800", 901)
    assert room(tmp_path) == 0
