from __future__ import annotations

from pathlib import Path

import pytest

from medes.agent.memory_headroom import headroom_bytes

V1_NO_LIMIT = 9223372036854771712


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    (tmp_path / "proc" / "7").mkdir(parents=True)
    return tmp_path / "proc"


def v1(folder: Path, limit: int, used: int, cache: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.limit_in_bytes").write_text(f"{limit}\n")
    (folder / "memory.usage_in_bytes").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(
        f"inactive_file 0\nactive_file 0\ntotal_inactive_file {cache}\ntotal_active_file 0\n"
    )


def v2(folder: Path, limit: str, used: int, cache: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {cache}\nactive_file 1\n")


def test_v1_takes_the_least_room_on_the_way_up(tmp_path: Path, proc: Path) -> None:
    (proc / "7" / "cgroup").write_text("4:memory:/pod/box\n3:cpu:/\n0::/\n")
    v1(tmp_path / "memory", V1_NO_LIMIT, 10_000)
    v1(tmp_path / "memory/pod", 1000, 900, cache=300)
    v1(tmp_path / "memory/pod/box", 800, 100)
    assert headroom_bytes(7, tmp_path, proc) == 400


def test_v2(tmp_path: Path, proc: Path) -> None:
    (proc / "7" / "cgroup").write_text("0::/pod/box\n")
    v2(tmp_path / "pod", "max", 900)
    v2(tmp_path / "pod/box", "800", 700, cache=49)
    assert headroom_bytes(7, tmp_path, proc) == 150


def test_no_limit_is_none(tmp_path: Path, proc: Path) -> None:
    (proc / "7" / "cgroup").write_text("0::/box\n")
    v2(tmp_path / "box", "max", 700)
    assert headroom_bytes(7, tmp_path, proc) is None
    assert headroom_bytes(8, tmp_path, proc) is None  # no such process


def test_a_group_over_its_limit_has_no_room(tmp_path: Path, proc: Path) -> None:
    (proc / "7" / "cgroup").write_text("0::/box\n")
    v2(tmp_path / "box", "800", 901, cache=0)
    assert headroom_bytes(7, tmp_path, proc) == -100
