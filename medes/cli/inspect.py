"""medes inspect: what is in slabs, sandbox files, encoded images and journals."""

from __future__ import annotations

import contextlib
import itertools
import json
import struct
from pathlib import Path
from typing import Any

import click

from medes import native
from medes.agent.store.store_key import KEY_BYTES, KEY_NAME
from medes.cli.format import table
from medes.cli.options import json_option, print_json
from medes.errors import (
    CorruptError,
    InvalidArgumentError,
    MedesError,
    NotFoundError,
    PermissionDeniedError,
)
from medes.units import bytes_text

ENCODED_MAGIC = b"MEDESENC"
SANDBOX_MAGIC = b"MEDSBX1\0"
SANDBOX_ENCODED_AT = 64  # u64 offset, u64 length of the encoded image in a sandbox file's header


JOURNAL_LINE_BYTES_MAX = 8 << 20


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--pages", is_flag=True, help="Also the runs of pages by kind.")
@click.option(
    "--verify",
    is_flag=True,
    help="Check every page; sandbox files need their bases' slabs in the same folder.",
)
@json_option
def cli(paths: tuple[Path, ...], pages: bool, verify: bool, as_json: bool) -> None:
    """Look into slabs, sandbox files, encoded images and journals, or whole folders of them.

    Reads only, so that a running agent may own them. Ends with the exit code of "corrupt" when one is damaged.
    --json prints a list with one object a file.
    """
    rows = [_row(file, pages, verify) for path in paths for file in _files(path)]
    if not rows:
        raise NotFoundError("no slab, sandbox file or journal lies there", object=", ".join(map(str, paths)))
    if as_json:
        print_json(rows)
    elif len(rows) == 1:
        for text in text_lines(rows[0]):
            click.echo(text)
    else:
        cells = [[r["kind"], Path(r["file"]).name, bytes_text(r["file_bytes"]), _summary(r)] for r in rows]
        table(["kind", "file", "size", "contents"], cells)
    damaged = [r["file"] for r in rows if "error" in r]
    if damaged:
        raise CorruptError(f"{len(damaged)} of {len(rows)} files are damaged", object=damaged[0])


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(
            p
            for p in path.iterdir()
            if p.is_file() and (p.suffix in (".slab", ".medes") or p.name == "journal")
        )
    if not path.exists():
        raise NotFoundError("no such file or folder", object=str(path))
    return [path]


def _row(file: Path, pages: bool, verify: bool) -> dict[str, Any]:
    """describe(), with `error` in place of what cannot be read."""
    facts: dict[str, Any] = {"kind": "unknown", "file": str(file), "file_bytes": file.stat().st_size}
    try:
        facts |= describe(file, pages=pages, verify=verify)
    except (MedesError, OSError) as error:
        facts["error"] = str(error)
    return facts


def describe(file: Path, pages: bool = False, verify: bool = False) -> dict[str, Any]:
    """What the file holds, as plain data. Raises corrupt, and invalid_argument for another kind of file."""
    with file.open("rb") as source:
        magic = source.read(8)
    if magic == ENCODED_MAGIC:
        return {"kind": "encoded image"} | _encoded(native.EncodedImage.from_bytes(file.read_bytes()), pages)
    if magic == SANDBOX_MAGIC or file.suffix == ".medes":
        facts = _sandbox(file, pages)
        return facts | _verified(file) if verify else facts
    if file.name == "journal":
        return _journal(file)
    return _slab(file, verify)


def _slab(file: Path, verify: bool) -> dict[str, Any]:
    try:
        slab = native.Slab.open(str(file), ours=False)
    except CorruptError as error:
        raise InvalidArgumentError(
            "neither a sound slab, nor a sandbox file, an encoded image or a journal",
            object=str(file),
            hint=str(error),
        ) from error
    facts: dict[str, Any] = {
        "kind": "slab",
        "base_id": f"{slab.base_id:#x}",
        "pages": slab.page_count,
        "value_only": slab.value_only,
        "ranges": [f"{begin:#x}-{end:#x}" for begin, end in slab.ranges],
    }
    if verify:
        if not slab.verify():
            raise CorruptError("a page does not match its checksum", object=str(file))
        facts["verified"] = True
    return facts


def _journal(file: Path) -> dict[str, Any]:
    """Counts its records by kind; a torn or damaged line is counted, as the agent skips it."""
    records: dict[str, int] = {}
    damaged = 0
    with file.open("rb") as source:
        while line := source.readline(JOURNAL_LINE_BYTES_MAX):
            text = line[17:].rstrip(b"\n")
            try:
                if int(line[:16], 16) != native.checksum64(text):
                    raise ValueError("checksum")
                kind = str(json.loads(text)["t"])
            except (ValueError, KeyError, TypeError, RecursionError):
                damaged += 1
                continue
            records[kind] = records.get(kind, 0) + 1
    return {"kind": "journal", "records": records, "damaged_lines": damaged}


def _verified(file: Path) -> dict[str, Any]:
    """Rebuilds every page of a sandbox file, where its bases lie beside it. Raises corrupt."""
    with contextlib.suppress(OSError, MedesError):  # pages carry tags that only who has the key can check
        native.set_store_key(str(file.parent), (file.parent / KEY_NAME).read_bytes()[:KEY_BYTES])
    sandbox = native.SandboxFile.open(str(file), ours=False)
    here = {
        s.base_id: s
        for s in (native.Slab.open(str(p), ours=False) for p in sorted(file.parent.glob("*.slab")))
    }
    absent = [base_id for base_id in sandbox.base_ids if base_id not in here]
    if absent:
        return {"verified": None, "not_verified": f"{len(absent)} of its bases are not in this folder"}
    bases = native.BaseSet()
    for base_id in sandbox.base_ids:
        bases.add_local(here[base_id])
    try:
        sandbox.verify(bases)
    except PermissionDeniedError as error:
        return {"verified": None, "not_verified": str(error)}
    return {"verified": True}


def _sandbox(file: Path, pages: bool) -> dict[str, Any]:
    sandbox = native.SandboxFile.open(str(file), ours=False)
    with file.open("rb") as source:
        source.seek(SANDBOX_ENCODED_AT)
        offset, length = struct.unpack("<QQ", source.read(16))
        source.seek(offset)
        encoded = native.EncodedImage.from_bytes(source.read(length))
    try:
        meta: Any = json.loads(sandbox.meta)
    except (ValueError, RecursionError):
        meta = f"{len(sandbox.meta)} bytes, not JSON"
    return {
        "kind": "sandbox file",
        "pids": sandbox.pids,
        "page_states": sandbox.page_state_counts,
        "meta": meta,
    } | _encoded(encoded, pages)


def _encoded(encoded: native.EncodedImage, pages: bool) -> dict[str, Any]:
    stats = encoded.stats
    warm = max(1, encoded.page_count * native.PAGE_BYTES)
    facts: dict[str, Any] = {
        "pages": encoded.page_count,
        "pages_by_kind": {kind: stats[f"pages_{kind}"] for kind in native.PAGE_KINDS},
        "encoded_bytes": encoded.blob_bytes,
        "gross_saved_ratio": round(1 - encoded.blob_bytes / warm, 4),
        "patch_bytes": stats["patch_bytes"],
        "table_bytes": stats["table_bytes"],
        "windows": stats["windows"],
        "group_pages": encoded.group_pages,
        "bases": [
            {"base_id": f"{base_id:#x}", "granules": granules, "slides": slides}
            for base_id, (granules, slides) in zip(encoded.base_ids, encoded.slides, strict=True)
        ],
    }
    if pages:
        runs = []
        first = 0
        for kind, group in itertools.groupby(encoded.page_kinds()):
            count = len(list(group))
            runs.append({"first": first, "count": count, "kind": native.PAGE_KINDS[kind]})
            first += count
        facts["runs"] = runs
    return facts


def _summary(facts: dict[str, Any]) -> str:
    """One line on a file."""
    if "error" in facts:
        return f"DAMAGED: {facts['error']}"
    if facts["kind"] == "journal":
        records = ", ".join(f"{count} {name}" for name, count in sorted(facts["records"].items()))
        return f"{records or 'no records'}, {facts['damaged_lines']} damaged lines"
    verified = {True: ", verified", None: f", not verified: {facts.get('not_verified', '')}"}
    end = verified.get(facts["verified"], "") if "verified" in facts else ""
    if facts["kind"] == "slab":
        return f"base {facts['base_id']}, {facts['pages']} pages{end}"
    spec = facts["meta"].get("spec", {}) if isinstance(facts.get("meta"), dict) else {}
    name = f"{spec.get('sandbox_id', '?')} of {spec.get('function', '?')}, " if spec else ""
    states = ", ".join(f"{count} {state}" for state, count in facts.get("page_states", {}).items() if count)
    return f"{name}{facts['pages']} pages ({states or 'encoded'}), saved {facts['gross_saved_ratio']:.1%} gross, {len(facts['bases'])} bases{end}"


def text_lines(facts: dict[str, Any]) -> list[str]:
    """The facts for people: one a line, lists indented below their name."""
    out = []
    for name, value in facts.items():
        label = name.replace("_", " ")
        if isinstance(value, list) and value:
            out.append(f"{label}:")
            out += [f"    {_short(item)}" for item in value]
        else:
            out.append(f"{label:14} {_short(value)}")
    return out


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return "none" if value == [] else str(value)
