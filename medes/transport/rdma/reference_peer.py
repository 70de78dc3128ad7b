"""An independent RDMA peer, written on pyverbs alone: the check that the native transport speaks plain verbs.

It reads slabs that the native server registered, and serves memory that the native client reads. It shares no
code with native/transport; endpoints and regions are exchanged as `medes.native` values. Blocking, one thread.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from medes import native
from medes.errors import PeerUnreachableError, UnsupportedError

PSN = 0x1234
MAX_RD_ATOMIC = 16
SEND_DEPTH = 64
GID_TYPE_ROCE_V2 = 2
COMPLETION_TIMEOUT_S = 30.0
_HINT = "apt-get install python3-pyverbs"


def _pyverbs() -> Any:
    """The modules used here as one namespace, imported late: pyverbs is optional."""
    try:
        import pyverbs.addr as addr
        import pyverbs.cq as cq
        import pyverbs.device as device
        import pyverbs.mr as mr
        import pyverbs.pd as pd
        import pyverbs.qp as qp
        import pyverbs.wr as wr

        try:
            import pyverbs.libibverbs_enums as enums  # rdma-core 55 and later
        except ImportError:
            import pyverbs.enums as enums
    except ImportError as error:
        raise UnsupportedError(str(error), object="pyverbs", hint=_HINT) from error

    class Modules:
        pass

    modules: Any = Modules()
    for name, module in {
        "addr": addr, "cq": cq, "device": device, "mr": mr, "pd": pd, "qp": qp, "wr": wr, "enums": enums
    }.items():  # fmt: skip
        setattr(modules, name, module)
    return modules


@dataclass(frozen=True)
class Completion:
    """How one READ ended: 0 is success, 10 a remote access error."""

    wr_id: int
    status: int


class ReferencePeer:
    """One device, one protection domain, one RC queue pair. Use as a context manager."""

    def __init__(self, device: str = "", port: int = 1) -> None:
        self._v = _pyverbs()
        names = [d.name.decode() for d in self._v.device.get_device_list()]
        if not names:
            raise UnsupportedError("no RDMA device", object="pyverbs")
        self._port = port
        self._context = self._v.device.Context(name=device or names[0])
        self._gid_index, self._gid = self._find_gid()
        self._pd = self._v.pd.PD(self._context)
        self._cq = self._v.cq.CQ(self._context, SEND_DEPTH + 16)
        enums = self._v.enums
        cap = self._v.qp.QPCap(max_send_wr=SEND_DEPTH, max_recv_wr=1, max_send_sge=1, max_recv_sge=1)
        init = self._v.qp.QPInitAttr(
            qp_type=enums.IBV_QPT_RC, scq=self._cq, rcq=self._cq, cap=cap, sq_sig_all=1
        )
        attributes = self._v.qp.QPAttr(port_num=port)
        attributes.qp_access_flags = enums.IBV_ACCESS_REMOTE_READ
        self._qp = self._v.qp.QP(self._pd, init, attributes)
        self._served: Any = None

    def __enter__(self) -> ReferencePeer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _find_gid(self) -> tuple[int, str]:
        """The RoCE v2 GID in IPv4-mapped form, else any RoCE v2 one."""
        entries = self._context.query_gid_table(128)
        usable = [e for e in entries if e.gid_type == GID_TYPE_ROCE_V2 and e.port_num == self._port]
        if not usable:
            raise UnsupportedError("no RoCE v2 GID", object=f"port {self._port}")
        mapped = [e for e in usable if ipaddress.IPv6Address(e.gid_str()).ipv4_mapped]
        chosen = (mapped or usable)[0]
        return chosen.gid_index, chosen.gid_str()

    def endpoint(self) -> native.RdmaEndpoint:
        mtu = self._context.query_port(self._port).active_mtu
        return native.RdmaEndpoint(
            self._qp.qp_num,
            PSN,
            ipaddress.IPv6Address(self._gid).packed,
            0,
            128 << mtu,
            MAX_RD_ATOMIC,
            self._port,
        )

    def connect(self, remote: native.RdmaEndpoint) -> None:
        """INIT → RTR → RTS towards the endpoint that the other side gave."""
        v = self._v
        route = v.addr.GlobalRoute(
            dgid=v.addr.GID(ipaddress.IPv6Address(remote.gid).exploded),
            sgid_index=self._gid_index,
            hop_limit=64,
        )
        attributes = v.qp.QPAttr(port_num=self._port)
        attributes.dest_qp_num = remote.queue_pair_number
        attributes.rq_psn = remote.packet_sequence_number
        attributes.sq_psn = PSN
        own_mtu = self._context.query_port(self._port).active_mtu
        attributes.path_mtu = min(own_mtu, remote.path_mtu.bit_length() - 8)
        attributes.max_rd_atomic = min(MAX_RD_ATOMIC, remote.max_rd_atomic)
        attributes.max_dest_rd_atomic = min(MAX_RD_ATOMIC, remote.max_rd_atomic)
        attributes.min_rnr_timer = 12
        attributes.timeout = 14
        attributes.retry_cnt = 6
        attributes.rnr_retry = 6
        attributes.ah_attr = v.addr.AHAttr(port_num=self._port, is_global=1, gr=route, dlid=remote.lid)
        self._qp.to_rts(attributes)

    def read(
        self, reads: Sequence[tuple[native.RdmaRegion, int, int]]
    ) -> tuple[list[Completion], list[bytes]]:
        """READs (region, offset, length) in order, all signalled; at most SEND_DEPTH. Bytes of failed ones are zeros.

        Raises peer_unreachable when completions do not come within COMPLETION_TIMEOUT_S.
        """
        v, enums = self._v, self._v.enums
        total = sum(length for _, _, length in reads)
        buffer = v.mr.MR(self._pd, total, enums.IBV_ACCESS_LOCAL_WRITE)
        buffer.write(bytes(total), total)
        at = 0
        places = []
        for i, (region, offset, length) in enumerate(reads):
            sge = v.wr.SGE(buffer.buf + at, length, buffer.lkey)
            request = v.wr.SendWR(
                wr_id=i, opcode=enums.IBV_WR_RDMA_READ, num_sge=1, sg=[sge],
                send_flags=enums.IBV_SEND_SIGNALED,
            )  # fmt: skip
            request.set_wr_rdma(region.remote_key, region.address + offset)
            self._qp.post_send(request)
            places.append((at, length))
            at += length
        done = self._completions(len(reads))
        return done, [buffer.read(length, place) for place, length in places]

    def _completions(self, count: int) -> list[Completion]:
        out: list[Completion] = []
        deadline = time.monotonic() + COMPLETION_TIMEOUT_S
        while len(out) < count:
            n, completions = self._cq.poll(count - len(out))
            out += [Completion(c.wr_id, c.status) for c in completions or []]
            if n == 0 and time.monotonic() > deadline:
                raise PeerUnreachableError(f"{len(out)} of {count} READs ended", object="pyverbs peer")
        return out

    def serve(self, base_id: int, data: bytes) -> native.RdmaRegion:
        """Memory with `data` for the other side to READ, until close()."""
        enums = self._v.enums
        self._served = self._v.mr.MR(
            self._pd, len(data), enums.IBV_ACCESS_LOCAL_WRITE | enums.IBV_ACCESS_REMOTE_READ
        )
        self._served.write(data, len(data))
        return native.RdmaRegion(base_id, self._served.buf, len(data), self._served.rkey)

    def close(self) -> None:
        """Queue pair first, device last. Idempotent."""
        for item in (self._qp, self._cq, self._served, self._pd, self._context):
            if item is not None:
                item.close()
