"""A process that reads by RDMA until it is killed: `python -m tests.support.rdma_peer` is told an endpoint and tells
its own, as JSON lines."""

from __future__ import annotations

import json
import sys

from medes import native

FIELDS = ("queue_pair_number", "packet_sequence_number", "lid", "path_mtu", "max_rd_atomic", "port")


def to_json(endpoint: native.RdmaEndpoint) -> str:
    return json.dumps({"gid": endpoint.gid.hex(), **{name: getattr(endpoint, name) for name in FIELDS}})


def from_json(text: str) -> native.RdmaEndpoint:
    values = json.loads(text)
    return native.RdmaEndpoint(**{**values, "gid": bytes.fromhex(values["gid"])})


def main() -> None:
    context = native.RdmaContext()
    reader = context.reader()
    print(to_json(reader.offer()), flush=True)
    reader.connect(from_json(sys.stdin.readline()))
    print("connected", flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    main()
