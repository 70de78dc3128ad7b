"""What an RDMA holder and reader tell each other, as bytes: endpoints of queue pairs, and where slabs lie."""

from __future__ import annotations

import struct
from collections.abc import Iterable

from medes import native
from medes.errors import InvalidArgumentError
from medes.transport.rdma.rdma_node import RdmaAnswer

ENDPOINT = struct.Struct("<II16sIIII")
REGION = struct.Struct("<QQQI")


def pack_endpoint(endpoint: native.RdmaEndpoint) -> bytes:
    return ENDPOINT.pack(
        endpoint.queue_pair_number,
        endpoint.packet_sequence_number,
        endpoint.gid,
        endpoint.lid,
        endpoint.path_mtu,
        endpoint.max_rd_atomic,
        endpoint.port,
    )


def unpack_endpoint(data: bytes) -> native.RdmaEndpoint:
    """Raises invalid_argument."""
    if len(data) != ENDPOINT.size:
        raise InvalidArgumentError(f"an RDMA endpoint has {ENDPOINT.size} bytes, not {len(data)}")
    return native.RdmaEndpoint(*ENDPOINT.unpack(data))


def pack_regions(regions: Iterable[native.RdmaRegion]) -> bytes:
    return b"".join(REGION.pack(r.base_id, r.address, r.length, r.remote_key) for r in regions)


def unpack_regions(data: bytes) -> list[native.RdmaRegion]:
    """Raises invalid_argument."""
    if len(data) % REGION.size:
        raise InvalidArgumentError(f"RDMA regions have {REGION.size} bytes each: {len(data)}")
    return [native.RdmaRegion(*values) for values in REGION.iter_unpack(data)]


def pack_answer(answer: RdmaAnswer) -> bytes | None:
    """None for a refusal."""
    if answer.endpoint is None:
        return None
    return pack_endpoint(answer.endpoint) + pack_regions(answer.regions)


def unpack_answer(data: bytes | None) -> RdmaAnswer:
    """Raises invalid_argument."""
    if data is None:
        return RdmaAnswer(None)
    endpoint, regions = data[: ENDPOINT.size], data[ENDPOINT.size :]
    return RdmaAnswer(unpack_endpoint(endpoint), tuple(unpack_regions(regions)))
