"""RDMA: the library, pyverbs, devices with their ports and GIDs."""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medes.doctor.check import Check

GROUP = "rdma"
NEED = "the rdma transport"
CLASS = Path("/sys/class/infiniband")
_PORT_STATES = {1: "down", 2: "init", 3: "armed", 4: "active"}
GIDS_SHOWN_MAX = 16


def probe() -> Iterator[Check]:
    try:
        ctypes.CDLL("libibverbs.so.1")
        yield Check(GROUP, "libibverbs", True, "loads", needed_for=NEED)
    except OSError as error:
        yield Check(
            GROUP, "libibverbs", False, str(error), "apt-get install libibverbs1 ibverbs-providers", NEED
        )
    device_module = None
    try:
        device_module = importlib.import_module("pyverbs.device")
        yield Check(GROUP, "pyverbs", True, "imports")
    except ImportError as error:
        yield Check(
            GROUP,
            "pyverbs",
            False,
            str(error),
            "apt-get install python3-pyverbs, then make build",
            "the reference peer",
        )
    names = sorted(p.name for p in CLASS.iterdir()) if CLASS.is_dir() else []
    if not names:
        yield Check(
            GROUP,
            "devices",
            False,
            "none",
            "an RDMA adapter, or Soft-RoCE: modprobe rdma_rxe; rdma link add rxe0 type rxe netdev DEV",
            NEED,
        )
    for name in names:
        yield _device(device_module, name)


def _device(module: Any, name: str) -> Check:
    if module is None:
        return Check(GROUP, f"device {name}", True, "present (details need pyverbs)", needed_for=NEED)
    try:
        context = module.Context(name=name)
        try:
            return _describe(context, name)
        finally:
            context.close()
    except Exception as error:  # pyverbs has its own error classes, which exist only where it does
        return Check(GROUP, f"device {name}", False, str(error), "check permissions of /dev/infiniband", NEED)


def _describe(context: Any, name: str) -> Check:
    attributes = context.query_device()
    ports = []
    active = False
    for number in range(1, attributes.phys_port_cnt + 1):
        port = context.query_port(number)
        active |= port.state == 4
        gids = [str(context.query_gid(number, i).gid) for i in range(min(port.gid_tbl_len, GIDS_SHOWN_MAX))]
        used = [g for g in gids if set(g) - set("0:")]
        ports.append(
            f"port {number} {_PORT_STATES.get(port.state, port.state)}, GIDs {', '.join(used) or 'none'}"
        )
    detail = f"{'; '.join(ports)}; {attributes.max_qp_rd_atom} reads in flight per queue pair"
    return Check(GROUP, f"device {name}", active, detail, "" if active else "bring the link up", NEED)
