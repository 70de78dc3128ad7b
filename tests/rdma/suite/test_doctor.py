"""`medes doctor` sees the guest's device through pyverbs: port state and GIDs."""

from __future__ import annotations

import pytest

from medes.doctor import rdma

pytestmark = pytest.mark.rdma


def test_the_device_is_described() -> None:
    checks = {check.name: check for check in rdma.probe()}
    assert checks["libibverbs"].works and checks["pyverbs"].works
    device = checks["device rxe0"]
    assert device.works, device.detail
    assert "port 1 active" in device.detail
    assert "10.9.0.1" in device.detail or "0a09:0001" in device.detail
    assert "reads in flight" in device.detail
