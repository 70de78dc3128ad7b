"""Choice among several RDMA ports, and connections that nobody uses any more; the devices are stand-ins."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from medes.errors import BusyError, InvalidArgumentError
from medes.transport.rdma.rdma_node import IPV4_MAPPED, RdmaNode, nearness, open_rdma, parse_devices


def v4(*octets: int) -> bytes:
    return IPV4_MAPPED + bytes(octets)


class Rail:
    """The serving half of an RdmaContext."""

    port = 1

    def __init__(self, device: str, gid: bytes, room: int = 100) -> None:
        self.device, self.gid, self.room = device, gid, room
        self.open: dict[int, tuple[str, str]] = {}
        self._ids = itertools.count(1)

    def accept(self, remote: Any, domain: str, peer: str) -> tuple[int, str]:
        if len(self.open) >= self.room:
            raise BusyError("full")
        connection_id = next(self._ids)
        self.open[connection_id] = (peer, domain)
        return connection_id, f"endpoint on {self.device}"

    def disconnect(self, connection_id: int) -> bool:
        return self.open.pop(connection_id, None) is not None

    def region(self, base_id: int, domain: str) -> str:
        return f"{self.device} {base_id} {domain}"

    def add_slab(self, slab: Any, domain: str) -> None: ...

    def stats(self) -> dict[str, int]:
        return {"server_connections_open": len(self.open)}


class Endpoint:
    def __init__(self, gid: bytes) -> None:
        self.gid = gid


class Base:
    base_id = 5


def node(*rails: Rail) -> RdmaNode:
    made = RdmaNode(rails)  # type: ignore[arg-type]
    made.publish(Base, "d")  # type: ignore[arg-type]
    return made


def accept(holder: RdmaNode, peer: str, gid: bytes, now_s: float = 0.0) -> Any:
    return holder.accept(peer, "d", Endpoint(gid), now_s)  # type: ignore[arg-type]


def test_ports_of_a_setting() -> None:
    assert parse_devices("") == []
    assert parse_devices("rxe0, mlx5_0:2") == [("rxe0", 0), ("mlx5_0", 2)]
    for wrong in (":1", "rxe0:", "rxe0:x", "rxe0:0", "rxe0:256", "a,a"):
        with pytest.raises(InvalidArgumentError):
            parse_devices(wrong)
    with pytest.raises(InvalidArgumentError):
        open_rdma("a:b")


def test_nearness_counts_common_bits_and_keeps_address_families_apart() -> None:
    assert nearness(v4(10, 9, 0, 1), v4(10, 9, 0, 1)) == 128
    assert nearness(v4(10, 9, 0, 1), v4(10, 9, 0, 2)) > nearness(v4(10, 9, 0, 1), v4(10, 9, 1, 2))
    assert nearness(v4(10, 9, 0, 1), bytes([0xFD]) + bytes(15)) == -1


def test_the_holder_answers_on_the_port_nearest_to_the_reader() -> None:
    rails = Rail("a", v4(10, 9, 0, 1)), Rail("b", v4(10, 9, 1, 1))
    holder = node(*rails)
    for _ in range(4):
        assert accept(holder, "n1", v4(10, 9, 1, 7)).regions == ("b 5 d",)
        assert accept(holder, "n2", v4(10, 9, 0, 7)).endpoint == "endpoint on a"
    assert [list(r.open.values()) for r in rails] == [[("n2", "d")], [("n1", "d")]], "one each, the last"
    assert holder.regions("n1", "d", [5]) == ["b 5 d"]
    assert holder.regions("n3", "d", [5]) == [], "no keys for a node without a connection"


def test_equally_near_ports_take_turns_and_a_full_one_is_passed_over() -> None:
    rails = Rail("a", v4(10, 9, 0, 1)), Rail("b", v4(10, 9, 0, 1), room=2)
    holder = node(*rails)
    for n in range(4):
        accept(holder, f"n{n}", v4(10, 9, 0, 9))
    assert [len(r.open) for r in rails] == [2, 2]
    for n in range(4, 7):
        assert accept(holder, f"n{n}", v4(10, 9, 0, 9)).endpoint == "endpoint on a"
    assert accept(holder, "n9", bytes([0xFD]) + bytes(15)).endpoint is None
    assert holder.stats() == {"server_connections_open": 7}


def test_connections_that_nobody_names_are_closed() -> None:
    rail = Rail("a", v4(10, 9, 0, 1))
    holder = node(rail)
    accept(holder, "n1", v4(10, 9, 0, 7), now_s=0)
    accept(holder, "n2", v4(10, 9, 0, 8), now_s=0)
    accept(holder, "n3", v4(10, 9, 0, 9), now_s=90)
    holder.keep("n2", ["d", "other"], 80)
    holder.keep("n7", ["d"], 80)
    assert holder.reap(silent_since_s=50, now_s=200) == 1
    assert sorted(rail.open.values()) == [("n2", "d"), ("n3", "d")]
    assert holder.reap(silent_since_s=50, now_s=200) == 0


def test_connections_end_with_the_token_that_was_granted_with_them() -> None:
    rail = Rail("a", v4(10, 9, 0, 1))
    holder = node(rail)
    holder.accept("n1", "d", Endpoint(v4(10, 9, 0, 7)), 0.0, 100.0)  # type: ignore[arg-type]
    holder.accept("n2", "d", Endpoint(v4(10, 9, 0, 8)), 50.0, 100.0)  # type: ignore[arg-type]
    for node_id in ("n1", "n2"):
        holder.keep(node_id, ["d"], 99.0)
    assert holder.reap(silent_since_s=0, now_s=99.0) == 0
    assert holder.reap(silent_since_s=0, now_s=100.0) == 1
    assert list(rail.open.values()) == [("n2", "d")]
    assert holder.regions("n1", "d") == [], "no keys without a queue pair"
