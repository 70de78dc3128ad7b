"""The guest's device is what the suite expects: Soft-RoCE, active, with an IPv4-mapped RoCE v2 GID."""

from __future__ import annotations

from pathlib import Path

import pytest

pytestmark = pytest.mark.rdma

PORT = Path("/sys/class/infiniband/rxe0/ports/1")


def test_port_is_active() -> None:
    assert "ACTIVE" in (PORT / "state").read_text()


def test_roce_v2_gid_of_the_interface_exists() -> None:
    mapped = [p.name for p in (PORT / "gids").iterdir() if p.read_text().strip().endswith(":ffff:0a09:0001")]
    assert mapped
    types = [(PORT / "gid_attrs" / "types" / index).read_text().strip() for index in mapped]
    assert "RoCE v2" in types
