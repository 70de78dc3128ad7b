"""Page reads by transport, beside what bounds them in the same run: memcpy for `local`, a bare socket for `tcp`, `tcp`
for `tcp+tls`, bare verbs and perftest's `ib_read_bw` for `rdma`.

A case is (transport, pages a batch, contiguous or scattered). Reference and transport take turns in short rounds, so
that a busy neighbour hits both; figures are medians over the rounds. Latencies are of single batches, one in flight:
at least LATENCY_BATCHES of them unless that takes longer than LATENCY_S_MAX; `n` says how many there were and `max`
the worst, which is what a p99 of few samples would hide. Every loop verifies the bytes it read.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from medes import meminfo, native, plugins
from medes.bench import perftest
from medes.bench.plugged_transport import Connector
from medes.bench.results import spread
from medes.certs.identity import FileIdentity, Identity, IssuedIdentity
from medes.certs.parties import Party, Role
from medes.errors import UnsupportedError
from medes.plugins import Kind
from medes.quantiles import median
from medes.rpc.tls import TlsFiles

PAGE = native.PAGE_BYTES
READ_BYTES_MAX = 8 << 20
DOMAIN = "bench"
BASE_ID = 1
BENCH_NODE = "bench"
OWN = ("local", "tcp", "tcp-unchecked", "tcp+tls")  # and those that are registered
SETUP_REPEATS = 20
LATENCY_BATCHES = 200
LATENCY_S_MAX = 5.0


@dataclass(frozen=True)
class Sizes:
    batches: Sequence[int] = (1, 16, 64, 512, 4096)
    slab_pages: int = 8192
    round_bytes: int = 64 << 20  # moved by one round of a case
    round_batches_max: int = 2000
    rounds: int = 5
    depth: int = 2
    latency_batches: int = LATENCY_BATCHES


@dataclass
class Way:
    """One transport, connected: how to read, how to connect anew, and the CPU time of the serving side."""

    name: str
    reader: native.PageReader
    connect: Callable[[], None]
    server_cpu_s: Callable[[], float]
    reference: Callable[..., dict[str, Any]] = native.time_socket
    reference_connect: Callable[[], None] | None = None  # of the same transport as `reference`


def known() -> tuple[str, ...]:
    """All that can be named."""
    return (*OWN, *plugins.names(Kind.TRANSPORT))


def offsets_of(pages: int, scattered: bool, slab_pages: int) -> tuple[list[int], int]:
    """Byte offsets and the length of each read: contiguous pages are one read, as a BaseSet would ask for them."""
    if scattered:
        chosen = random.Random(pages).sample(range(slab_pages), pages)
        return [page * PAGE for page in chosen], PAGE
    length = min(pages * PAGE, READ_BYTES_MAX)
    return list(range(0, pages * PAGE, length)), length


def measure(
    names: Sequence[str] = (), sizes: Sizes | None = None, tls: TlsFiles | None = None
) -> Iterator[dict[str, Any]]:
    """One line a case. Without `names` all transports, and one that cannot run here yields one line that says why;
    one that is named and cannot run raises unsupported, or what else it fails with."""
    sizes = sizes or Sizes()
    with tempfile.TemporaryDirectory(prefix="medes-bench-", dir=_shm()) as folder:
        source = random.Random(5)
        image = native.MemoryImage.from_buffer(source.randbytes(sizes.slab_pages * PAGE))
        slab = native.Slab.create(str(Path(folder) / "bench.slab"), BASE_ID, image)
        for name in names or known():
            try:
                with contextlib.ExitStack() as stack:
                    way = _open(stack, name, slab, tls)
                    yield _setup(way)
                    for pages in sizes.batches:
                        for scattered in (False, True):
                            yield _case(way, slab, pages, scattered, sizes)
                if name == "rdma":
                    yield from perftest.measure(sizes.batches, sizes.depth)
            except UnsupportedError as error:
                if names:
                    raise
                yield {"benchmark": "transport", "transport": name, "skipped": str(error)}
                if name == "rdma":
                    yield perftest.skipped(str(error))


def _case(way: Way, slab: native.Slab, pages: int, scattered: bool, sizes: Sizes) -> dict[str, Any]:
    offsets, length = offsets_of(pages, scattered, sizes.slab_pages)
    batch_bytes = pages * PAGE
    n = max(3, min(sizes.round_batches_max, sizes.round_bytes // batch_bytes))
    native.time_reads(
        way.reader, slab, offsets, length, max(2, n // 10), sizes.depth
    )  # warm buffers and windows
    speeds, references = [], []
    client_cpu_s = server_cpu_s = reference_cpu_s = 0.0
    moved = 0
    for _ in range(sizes.rounds):
        reference = way.reference(slab, offsets, length, n, sizes.depth)
        reference_cpu_s += reference["cpu_s"]
        references.append(reference["bytes"] / reference["wall_s"])
        server = way.server_cpu_s()
        times = native.time_reads(way.reader, slab, offsets, length, n, sizes.depth)
        server = way.server_cpu_s() - server
        client_cpu_s += times["cpu_s"] - server
        server_cpu_s += server
        moved += times["bytes"]
        speeds.append(times["bytes"] / times["wall_s"])
    latencies = _latencies(way.reader, slab, offsets, length, sizes)
    cpu_s = client_cpu_s + server_cpu_s or 1e-9
    return {
        "benchmark": "transport",
        "transport": way.name,
        "pages": pages,
        "scattered": scattered,
        "depth": sizes.depth,
        "latency_us": _with_worst(latencies),
        "gb_per_s": round(median(speeds) / 1e9, 3),
        "reference": way.reference.__name__.removeprefix("time_"),
        "reference_gb_per_s": round(median(references) / 1e9, 3),
        "of_reference": round(median(s / r for s, r in zip(speeds, references, strict=True)), 3),
        "reference_cpu_s_per_gb": round(reference_cpu_s / (moved / 1e9), 3),
        "read_bytes": length,
        "reads_per_s_per_core": round(moved / length / cpu_s),
        "pages_per_s_per_core": round(moved / PAGE / cpu_s),
        "client_cpu_s_per_gb": round(client_cpu_s / (moved / 1e9), 3),
        "server_cpu_s_per_gb": round(server_cpu_s / (moved / 1e9), 3),
    }


def _latencies(
    reader: native.PageReader, slab: native.Slab, offsets: list[int], length: int, sizes: Sizes
) -> list[float]:
    """Microseconds of single batches with nothing else in flight."""
    found: list[float] = []
    deadline_s = time.monotonic() + LATENCY_S_MAX
    while len(found) < sizes.latency_batches and (time.monotonic() < deadline_s or not found):
        # In small portions, so that the bound on time holds where a batch takes long.
        found += native.time_reads(reader, slab, offsets, length, 5, 1)["latency_us"]
    return found


def _with_worst(samples: Sequence[float]) -> dict[str, float | int]:
    return {**spread(samples, 1), "max": round(max(samples), 1)}


def _setup(way: Way) -> dict[str, Any]:
    """In turn with the reference, where that connects as well."""
    ways = {"connect_us": way.connect, "reference_connect_us": way.reference_connect}
    samples: dict[str, list[float]] = {name: [] for name, connect in ways.items() if connect}
    for _ in range(SETUP_REPEATS):
        for name, times in samples.items():
            connect = ways[name]
            assert connect is not None
            begun = time.perf_counter()
            connect()
            times.append((time.perf_counter() - begun) * 1e6)
    return {
        "benchmark": "transport_setup",
        "transport": way.name,
        **{name: _with_worst(times) for name, times in samples.items()},
    }


def _open(stack: contextlib.ExitStack, name: str, slab: native.Slab, tls: TlsFiles | None) -> Way:
    """Connects; `stack` closes it. Raises unsupported where this transport cannot run here."""
    openers = {
        "local": _local,
        "tcp": _tcp,
        "tcp-unchecked": _tcp_unchecked,
        "tcp+tls": _tcp_tls,
        "rdma": _rdma,
    }
    return openers[name](stack, slab, tls) if name in openers else _plugged(stack, slab, name)


def _local(stack: contextlib.ExitStack, slab: native.Slab, tls: TlsFiles | None) -> Way:
    reader = native.local_reader([slab])
    stack.callback(reader.close)
    return Way("local", reader, lambda: native.local_reader([slab]).close(), lambda: 0.0, native.time_memcpy)


def _tcp(stack: contextlib.ExitStack, slab: native.Slab, tls: TlsFiles | None) -> Way:
    return _over_sockets(stack, slab, "tcp")


def _tcp_unchecked(stack: contextlib.ExitStack, slab: native.Slab, tls: TlsFiles | None) -> Way:
    """Without the reader's digests: what they cost is the difference."""
    return _over_sockets(stack, slab, "tcp-unchecked", check_digests=False)


def _tcp_tls(stack: contextlib.ExitStack, slab: native.Slab, tls: TlsFiles | None) -> Way:
    """With throw-away certificates unless some are given."""
    party = Party(Role.NODE, BENCH_NODE)
    if tls is not None and tls.enabled:
        identity: Identity = FileIdentity(tls)
        party = identity.party or party
    else:
        from medes.certs.authority import Authority

        identity = IssuedIdentity(Authority.create("bench"), party)
    pem = identity.pem
    shown = native.TlsIdentity(pem.certificate, pem.private_key, pem.ca)
    tcp = _over_sockets(stack, slab, "tcp")

    def time_tcp(
        slab: native.Slab, offsets: list[int], length: int, rounds: int, depth: int
    ) -> dict[str, Any]:
        return native.time_reads(tcp.reader, slab, offsets, length, rounds, depth)

    way = _over_sockets(stack, slab, "tcp+tls", shown, party)
    way.reference, way.reference_connect = time_tcp, tcp.connect
    return way


def _over_sockets(
    stack: contextlib.ExitStack,
    slab: native.Slab,
    name: str,
    shown: native.TlsIdentity | None = None,
    party: Party | None = None,
    *,
    check_digests: bool = True,
) -> Way:
    """The node reads from itself: `party` is whom its certificate is for."""
    server = native.PageServer("127.0.0.1", 0, identity=shown)
    stack.callback(server.close)
    server.add_slab(slab, DOMAIN)
    token = os.urandom(32)
    server.grant(token, DOMAIN, party.name if party else BENCH_NODE)

    def connect() -> native.PageReader:
        return native.tcp_reader(
            server.address,
            token,
            attempts=1,
            check_digests=check_digests,
            identity=shown,
            server_name=party.server_name if party else "",
        )

    reader = connect()
    stack.callback(reader.close)
    return Way(name, reader, lambda: connect().close(), lambda: server.stats()["cpu_us"] / 1e6)


def _rdma(stack: contextlib.ExitStack, slab: native.Slab, tls: TlsFiles | None) -> Way:
    """The holder is a process of its own, so that its CPU time during reads can be told from the reader's."""
    reading = native.RdmaContext()
    stack.callback(reading.close)
    holder = _Holder(slab.path)
    stack.callback(holder.close)

    def connect() -> native.RdmaReader:
        reader = reading.reader()
        endpoint, region = holder.accept(reader.offer())
        reader.connect(endpoint)
        reader.add_region(region)
        return reader

    def connect_and_close() -> None:
        connect().close()
        holder.disconnect()

    reader = connect()
    stack.callback(reader.close)
    return Way("rdma", reader, connect_and_close, holder.cpu_s, native.time_verbs)


def _plugged(stack: contextlib.ExitStack, slab: native.Slab, name: str) -> Way:
    """CPU time of the holder counts as the reader's: both are in this process."""
    connector = Connector(stack, name, slab, DOMAIN)
    reader = connector.connect()
    stack.callback(reader.close)
    return Way(name, reader, lambda: connector.connect().close(), lambda: 0.0)


class _Holder:
    """A process that serves one slab by RDMA and otherwise waits."""

    def __init__(self, slab_path: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_hold, args=(theirs, slab_path), daemon=True)
        self._process.start()
        theirs.close()

    def accept(self, remote: native.RdmaEndpoint) -> tuple[native.RdmaEndpoint, native.RdmaRegion]:
        self._pipe.send(tuple(getattr(remote, name) for name in _ENDPOINT_FIELDS))
        endpoint, region = self._pipe.recv()
        return native.RdmaEndpoint(*endpoint), native.RdmaRegion(*region)

    def disconnect(self) -> None:
        """Ends the connection that was made last."""
        self._pipe.send(None)

    def cpu_s(self) -> float:
        """CPU time of all its threads so far, in user and kernel mode."""
        tasks = Path(f"/proc/{self._process.pid}/task")
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks.iterdir()) / 1e9

    def close(self) -> None:
        self._pipe.close()
        self._process.join(10)


_ENDPOINT_FIELDS = (
    "queue_pair_number", "packet_sequence_number", "gid", "lid", "path_mtu", "max_rd_atomic", "port",
)  # fmt: skip
_REGION_FIELDS = ("base_id", "address", "length", "remote_key")


def _hold(pipe: Connection, slab_path: str) -> None:
    serving = native.RdmaContext()
    serving.add_slab(native.Slab.open(slab_path), DOMAIN)
    connections: list[int] = []
    with contextlib.suppress(EOFError):
        while True:
            asked = pipe.recv()
            if asked is None:
                serving.disconnect(connections.pop())
                continue
            connection, endpoint = serving.accept(native.RdmaEndpoint(*asked), DOMAIN, "bench")
            connections.append(connection)
            region = serving.region(BASE_ID, DOMAIN)
            pipe.send(
                (
                    tuple(getattr(endpoint, name) for name in _ENDPOINT_FIELDS),
                    tuple(getattr(region, name) for name in _REGION_FIELDS),
                )
            )
    serving.close()


def measure_peers(counts: Sequence[int]) -> Iterator[dict[str, Any]]:
    """How RDMA behaves with that many connected peers: set-up, kernel memory, latency of a read at each in turn.

    All queue pairs of both sides are on this node's device. Raises unsupported without one.
    """
    pages = 256
    with tempfile.TemporaryDirectory(prefix="medes-bench-", dir=_shm()) as folder:
        image = native.MemoryImage.from_buffer(random.Random(5).randbytes(pages * PAGE))
        slab = native.Slab.create(str(Path(folder) / "bench.slab"), BASE_ID, image)
        for count in counts:
            with contextlib.ExitStack() as stack:
                limit = max(counts) + 1
                serving = native.RdmaContext(server_connections_max=limit)
                reading = native.RdmaContext(client_connections_max=limit)
                stack.callback(serving.close)
                stack.callback(reading.close)
                serving.add_slab(slab, DOMAIN)
                region = serving.region(BASE_ID, DOMAIN)
                assert region is not None
                free_before = _available_bytes()
                readers, setup_us = [], []
                for _ in range(count):
                    begun = time.perf_counter()
                    reader = reading.reader()
                    stack.callback(reader.close)
                    _, endpoint = serving.accept(reader.offer(), DOMAIN, "bench")
                    reader.connect(endpoint)
                    setup_us.append((time.perf_counter() - begun) * 1e6)
                    reader.add_region(region)
                    readers.append(reader)
                memory = free_before - _available_bytes()
                latency: list[float] = []
                for turn in range(max(200, count)):
                    reader = readers[turn % count]
                    latency += native.time_reads(reader, slab, [turn % pages * PAGE], PAGE, 1)["latency_us"]
                yield {
                    "benchmark": "transport_peers",
                    "peers": count,
                    "connect_us": spread(setup_us, 1),
                    "bytes_per_peer": max(0, memory) // count,
                    "registered_bytes": serving.stats()["registered_bytes"],
                    "read_us": spread(latency, 1),
                }


def _available_bytes() -> int:
    return meminfo.read()["MemAvailable"]


def _shm() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None
