"""The registry: publish and lookup, in the store alone and through a controller's gRPC. Every answer is checked.

A base of P pages carries P * k random hashes; the image that is looked up repeats a share of them (the hit
ratio) from bases spread over the registry, the rest matches nothing.
"""

from __future__ import annotations

import asyncio
import random
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from medes.bench.machine import machine
from medes.config import ControllerSettings
from medes.controller.process import Controller
from medes.controller.registry.store import Found, RegistryStore
from medes.errors import CorruptError
from medes.quantiles import quantile
from medes.rpc.channel import sync_channel
from medes.rpc.gen import controller_pb2 as pb
from medes.rpc.gen.controller_pb2_grpc import ControllerServiceStub
from medes.types import BaseDescriptor

DOMAIN = "bench"
NODE = "bench-node"


@dataclass(frozen=True, slots=True)
class Sizes:
    """What to measure with. pages is the size of each base and of the image, repeats the lookups timed."""

    bases: int = 40
    pages: int = 25_600
    samples_per_page: int = 8
    hit_ratio: float = 0.9
    repeats: int = 20
    threads: int = 2
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Image:
    """Hashes to look up and, for every page, the base page that must be found (None: nothing)."""

    hashes: bytes
    expected: list[tuple[int, int] | None]


def make_base(sizes: Sizes, base_id: int) -> tuple[BaseDescriptor, bytes, bytes]:
    """Deterministic contents of one base."""
    rng = random.Random(sizes.seed * 1_000_003 + base_id)
    samples = sizes.pages * sizes.samples_per_page
    descriptor = BaseDescriptor(base_id, (NODE,), DOMAIN, "f", sizes.pages)
    return descriptor, rng.randbytes(samples * 8), bytes(i % 253 for i in range(samples))


def make_image(sizes: Sizes) -> Image:
    """Pages of random bases at the same index, or pages that nobody has."""
    rng = random.Random(sizes.seed)
    page_bytes = sizes.samples_per_page * 8
    contents = {i: make_base(sizes, i)[1] for i in range(1, min(sizes.bases, 8) + 1)}
    parts: list[bytes] = []
    expected: list[tuple[int, int] | None] = []
    for page in range(sizes.pages):
        if rng.random() < sizes.hit_ratio:
            base_id = rng.choice(list(contents))
            parts.append(contents[base_id][page * page_bytes : (page + 1) * page_bytes])
            expected.append((base_id, page))
        else:
            parts.append(rng.randbytes(page_bytes))
            expected.append(None)
    return Image(b"".join(parts), expected)


def verify(image: Image, found: Found, samples_per_page: int) -> None:
    """Raises corrupt when any page's first sample does not lead to the page it was taken from."""
    values = struct.unpack(f"<{len(found.locations) // 8}Q", found.locations)
    stride = samples_per_page * 2
    if len(values) != len(image.expected) * stride:
        raise CorruptError("the answer has another size than the question", object="lookup")
    none = 2**64 - 1
    for page, wanted in enumerate(image.expected):
        seen = {
            (found.bases[v >> 48].base_id, v >> 16 & 0xFFFFFFFF)
            for v in values[page * stride : page * stride + 2]
            if v != none
        }
        if (wanted not in seen) if wanted else bool(seen):
            raise CorruptError(f"expected {wanted}, found {seen}", object=f"page {page}")


def _line(case: str, sizes: Sizes, seconds: list[float], **more: Any) -> dict[str, Any]:
    p50 = quantile(seconds, 0.5)
    return {
        "bench": "registry",
        "case": case,
        "bases": sizes.bases,
        "pages": sizes.pages,
        "samples_per_page": sizes.samples_per_page,
        "hit_ratio": sizes.hit_ratio,
        "n": len(seconds),
        "us_p50": p50 * 1e6,
        "us_p99": quantile(seconds, 0.99) * 1e6,
        "us_per_page_p50": p50 * 1e6 / sizes.pages,
        **more,
        **machine(),
    }


def _timed(action: Callable[[], Any], repeats: int) -> tuple[list[float], Any]:
    seconds: list[float] = []
    result: Any = None
    for _ in range(repeats):
        start_s = time.perf_counter()
        result = action()
        seconds.append(time.perf_counter() - start_s)
    return seconds, result


def measure(sizes: Sizes, store: RegistryStore, name: str = "memory") -> Iterator[dict[str, Any]]:
    """Yields one line per case as it is done. Fills `store` and leaves it filled; blocks."""
    seconds: list[float] = []
    for base_id in range(1, sizes.bases + 1):
        base, hashes, positions = make_base(sizes, base_id)
        start_s = time.perf_counter()
        store.publish(base, hashes, positions, sizes.samples_per_page)
        seconds.append(time.perf_counter() - start_s)
    stats = store.stats()
    yield _line(
        "publish",
        sizes,
        seconds,
        store=name,
        registry_bytes=stats.bytes,
        bytes_per_base_page=stats.bytes / max(1, stats.base_pages),
    )
    image = make_image(sizes)

    def look() -> Found:
        return store.lookup(DOMAIN, image.hashes, sizes.samples_per_page)

    verify(image, look(), sizes.samples_per_page)
    seconds, found = _timed(look, sizes.repeats)
    verify(image, found, sizes.samples_per_page)
    yield _line("lookup", sizes, seconds, store=name, pages_per_s=sizes.pages / quantile(seconds, 0.5))

    with ThreadPoolExecutor(sizes.threads) as pool:
        start_s = time.perf_counter()
        rounds = list(pool.map(lambda _: _timed(look, 1)[0][0], range(sizes.repeats * sizes.threads)))
        total_s = time.perf_counter() - start_s
    yield _line(
        "lookup_concurrent",
        sizes,
        rounds,
        store=name,
        threads=sizes.threads,
        pages_per_s=sizes.pages * len(rounds) / total_s,
    )


def measure_rpc(sizes: Sizes, store: RegistryStore, name: str = "memory") -> Iterator[dict[str, Any]]:
    """The same lookup through a controller on a unix socket, with the filled store; closes the store."""
    image = make_image(sizes)
    store.renew([NODE], 3600.0)  # else the controller takes out the bases of a node that it never hears
    with tempfile.TemporaryDirectory(prefix="medes-bench-") as folder:
        settings = ControllerSettings(
            listen=f"unix:{folder}/controller.sock",
            samples_per_page=sizes.samples_per_page,
            lookup_threads=sizes.threads,
        )
        seconds, answer = asyncio.run(_ask_controller(settings, store, image, sizes))
    found = Found(answer.locations, tuple(BaseDescriptor(b.base_id, ("",), "") for b in answer.bases))
    verify(image, found, sizes.samples_per_page)
    yield _line(
        "lookup_rpc",
        sizes,
        seconds,
        store=name,
        request_bytes=len(image.hashes),
        answer_bytes=len(answer.locations),
        pages_per_s=sizes.pages / quantile(seconds, 0.5),
    )


async def _ask_controller(
    settings: ControllerSettings, store: RegistryStore, image: Image, sizes: Sizes
) -> tuple[list[float], Any]:
    request = pb.LookupFingerprintsRequest(
        node_id=NODE, domain=DOMAIN, samples_per_page=sizes.samples_per_page, hashes=image.hashes
    )

    def ask() -> tuple[list[float], Any]:
        with sync_channel(settings.listen) as channel:
            stub = ControllerServiceStub(channel)
            stub.LookupFingerprints(request)  # connects
            return _timed(lambda: stub.LookupFingerprints(request), sizes.repeats)

    async with Controller(settings, store=store):
        return await asyncio.to_thread(ask)
