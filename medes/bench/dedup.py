"""Savings and speed of the dedup engine on real function processes, beside what others save on the same images.

Instance 0 of a function is its base, the others are targets. Saved is 1 - kept/warm, all tables counted. Every scheme
rebuilds and compares every page (for `paper`, which goes through a slow tool, every patched page of a sample).
"""

from __future__ import annotations

import contextlib
import ctypes
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medes import native
from medes.agent.store.store_key import KEY_BYTES
from medes.bench import dedup_baselines as baselines
from medes.bench.dedup_baselines import Outcome
from medes.bench.results import cpu_timed
from medes.bench.workloads import select
from medes.errors import InvalidArgumentError, IoError
from medes.runtimes import manifest
from medes.runtimes.host.standalone import running_instances

SCHEMES = ("medes", "medes-nogroup", "medes-untagged", "paper", "zstd", "lz4", "ksm")
OURS = {"medes": None, "medes-nogroup": 0, "medes-untagged": None}  # scheme → group_pages
UNTAGGED = "medes-untagged"  # pages carry checksums, not keyed tags
ADDR_NO_RANDOMIZE = 0x0040000
PAGE = native.PAGE_BYTES


@dataclass
class Captured:
    """The images of one function's instances; the first is the base and lies in a slab too."""

    function: str
    images: list[native.MemoryImage]
    slab: native.Slab
    base_id: int


@contextlib.contextmanager
def address_randomisation(on: bool) -> Iterator[None]:
    """Processes started inside have ASLR as asked for (an inherited personality flag)."""
    if on:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    before = libc.personality(ctypes.c_ulong(0xFFFFFFFF))
    if before < 0 or libc.personality(ctypes.c_ulong(before | ADDR_NO_RANDOMIZE)) < 0:
        raise IoError("personality(2) failed: ASLR cannot be switched off")
    try:
        yield
    finally:
        libc.personality(ctypes.c_ulong(before))


def capture_function(spec: manifest.FunctionSpec, instances: int, folder: Path, base_id: int) -> Captured:
    """Runs, warms and captures `instances` processes of a function, then ends them."""
    with running_instances(spec, instances, seed=base_id) as running:
        images = [native.capture(native.process_tree([instance.pid])) for instance in running]
    slab = native.Slab.create(str(folder / f"base-{base_id}.slab"), base_id, images[0])
    return Captured(spec.name, images, slab, base_id)


def index_of(slabs: Sequence[native.Slab], samples: int) -> native.FingerprintIndex:
    index = native.FingerprintIndex()
    for slab in slabs:
        prints = slab.fingerprint(samples)
        index.insert(slab.base_id, prints.hashes, prints.positions, samples)
    return index


def encode_against(
    image: native.MemoryImage,
    index: native.FingerprintIndex,
    slabs: Sequence[native.Slab],
    samples: int,
    scheme: str,
) -> Outcome:
    """The engine's whole path for one image, without capture and store. encode() itself decodes and compares."""
    steps: dict[str, float] = {}
    prints, steps["fingerprint_s"] = cpu_timed(lambda: native.fingerprint(image, samples))
    found, steps["lookup_s"] = cpu_timed(lambda: index.lookup(prints.hashes, samples))
    plan, steps["plan_s"] = cpu_timed(lambda: native.plan_windows(image, prints, found))
    bases = native.BaseSet()
    wanted = set(plan.base_ids)
    folder = "" if scheme == UNTAGGED else str(Path(slabs[0].path).parent)
    for slab in slabs:
        if slab.base_id in wanted:
            bases.add_local(slab)
    encoded, steps["encode_verify_s"] = cpu_timed(
        lambda: native.encode(image, plan, bases, group_pages=OURS[scheme], folder=folder)
    )
    _, apply_s = cpu_timed(lambda: encoded.check(bases))
    stats = encoded.stats
    outcome = Outcome(
        warm_bytes=image.page_count * PAGE,
        kept_bytes=encoded.blob_bytes,
        patch_bytes=stats["patch_bytes"],
        encode_s=sum(steps.values()),
        apply_s=apply_s,
    )
    outcome.pages.update({kind: stats[f"pages_{kind}"] for kind in native.PAGE_KINDS})
    outcome.extra = {**steps, "windows": stats["windows"]}
    return outcome


def report_line(function: str, scheme: str, outcome: Outcome, **more: Any) -> dict[str, Any]:
    """One line of the report."""
    pages = max(1, outcome.warm_bytes // PAGE)

    def per_page(seconds: float | None) -> float | None:
        return None if seconds is None else round(seconds / pages * 1e6, 3)

    def speed(seconds: float | None) -> float | None:
        return None if not seconds else round(outcome.warm_bytes / seconds / 1e9, 3)

    line = {
        "bench": "dedup",
        "function": function,
        "scheme": scheme,
        "saved_ratio": round(1 - outcome.kept_bytes / max(1, outcome.warm_bytes), 4),
        "mean_patch_bytes": round(outcome.patch_bytes / pages, 1),
        "pages": {kind: outcome.pages[kind] for kind in native.PAGE_KINDS},
        "encode_us_per_page": per_page(outcome.encode_s),
        "apply_us_per_page": per_page(outcome.apply_s),
        "gb_per_s_per_core_encode": speed(outcome.encode_s),
        "gb_per_s_per_core_apply": speed(outcome.apply_s),
        "warm_bytes": outcome.warm_bytes,
        "kept_bytes": round(outcome.kept_bytes),
    }
    for name, value in outcome.extra.items():
        if name.endswith("_s"):
            line[f"{name[:-2]}_us_per_page"] = per_page(value)
        else:
            line[name] = value
    return line | more


def run(
    directory: Path | None,
    instances: int,
    aslr: bool,
    schemes: Sequence[str],
    samples: int = native.DEFAULT_SAMPLES,
    paper_sample: int = 40,
    only: Sequence[str] = (),
) -> Iterator[dict[str, Any]]:
    """Lines per function and scheme, then per scheme function "ALL" (memory-weighted), then the first instance of each
    function against the other functions' bases ("bases": "others") and what sharing base pages saves. `only`: the
    functions of these names."""
    if instances < 2:
        raise InvalidArgumentError("at least two instances: a base and a target", object=str(instances))
    for scheme in schemes:
        if scheme not in SCHEMES:
            raise InvalidArgumentError("unknown scheme", object=scheme, hint=", ".join(SCHEMES))
    specs = select(directory, only)
    totals = {scheme: Outcome() for scheme in schemes}
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="medes-bench-") as temporary:
        folder = Path(temporary)
        native.set_store_key(str(folder), secrets.token_bytes(KEY_BYTES))
        firsts: list[Captured] = []
        seconds: list[native.MemoryImage] = []
        for number, spec in enumerate(specs):
            with address_randomisation(aslr):
                captured = capture_function(spec, instances, folder, base_id=number + 1)
            for scheme in schemes:
                outcome = run_scheme(scheme, captured, samples, paper_sample)
                totals[scheme].add(outcome)
                yield report_line(spec.name, scheme, outcome, bases="same", aslr=aslr)
            seconds.append(captured.images[1])
            del captured.images[1:]
            firsts.append(captured)
        for scheme in schemes:
            yield report_line("ALL", scheme, totals[scheme], bases="same", aslr=aslr)
        ours = [scheme for scheme in schemes if scheme in OURS]
        if len(firsts) > 1 and ours:
            yield from other_bases(firsts, ours, samples, aslr)
            yield shared_bases(firsts, seconds, folder, samples, aslr)


def run_scheme(scheme: str, captured: Captured, samples: int, paper_sample: int) -> Outcome:
    """One scheme over all of a function's targets."""
    base, targets = captured.images[0], captured.images[1:]
    total = Outcome()
    if scheme in OURS:
        index = index_of([captured.slab], samples)
        for image in targets:
            total.add(encode_against(image, index, [captured.slab], samples, scheme))
    elif scheme == "paper":
        paper = baselines.Paper(paper_sample)
        paper.add_base(base)
        for image in targets:
            total.add(paper.encode(image))
    elif scheme == "ksm":
        known = baselines.page_digests(base)
        for image in targets:
            total.add(baselines.ksm(image, known))
    else:
        for image in targets:
            total.add(baselines.zstd(image) if scheme == "zstd" else baselines.lz4(image))
    return total


def other_bases(
    firsts: Sequence[Captured], schemes: Sequence[str], samples: int, aslr: bool
) -> Iterator[dict[str, Any]]:
    """The first instance of each function when only the other functions have bases."""
    for scheme in schemes:
        total = Outcome()
        for captured in firsts:
            slabs = [other.slab for other in firsts if other is not captured]
            index = index_of(slabs, samples)
            outcome = encode_against(captured.images[0], index, slabs, samples, scheme)
            total.add(outcome)
            yield report_line(captured.function, scheme, outcome, bases="others", aslr=aslr)
        yield report_line("ALL", scheme, total, bases="others", aslr=aslr)


def shared_bases(
    firsts: Sequence[Captured],
    seconds: Sequence[native.MemoryImage],
    folder: Path,
    samples: int,
    aslr: bool,
) -> dict[str, Any]:
    """Bases published one after the other, each with only the pages that the earlier ones do not cover; then every
    function's second instance against all of them, and what the first ones themselves keep beside the bases."""
    index = native.FingerprintIndex()
    slabs: list[native.Slab] = []
    whole = 0
    for captured in firsts:
        image = captured.images[0]
        whole += image.page_count
        prints = native.fingerprint(image, samples)
        plan = native.plan_windows(image, prints, index.lookup(prints.hashes, samples))
        pages = plan.uncovered_pages()
        if not pages:
            continue
        base_id = 1000 + captured.base_id
        slab = native.Slab.create(str(folder / f"base-{base_id}.slab"), base_id, image, pages)
        own = slab.fingerprint(samples)
        index.insert(base_id, own.hashes, own.positions, samples)
        slabs.append(slab)
    total = Outcome()
    for image in seconds:
        total.add(encode_against(image, index, slabs, samples, "medes"))
    of_firsts = Outcome()
    for captured in firsts:
        of_firsts.add(encode_against(captured.images[0], index, slabs, samples, "medes"))
    stored = sum(slab.page_count for slab in slabs)
    registry_bytes = index.stats()["bytes"]
    return report_line(
        "ALL",
        "medes",
        total,
        bases="shared",
        aslr=aslr,
        base_whole_bytes=whole * PAGE,
        base_stored_bytes=stored * PAGE,
        bases_kept_bytes=round(of_firsts.kept_bytes),
        registry_bytes=registry_bytes,
        registry_bytes_per_base_page=round(registry_bytes / max(1, stored), 1),
    )
