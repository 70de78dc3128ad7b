"""The sandbox file of a dedup op: patches, table, layout, and what another agent needs to know to take it back."""

from __future__ import annotations

import json

from medes import native
from medes.agent.agent import Agent, endpoints_to_json
from medes.agent.ops.op_pins import OpPins, Planned, unpin
from medes.agent.sandboxes.sandbox import SandboxEntry
from medes.agent.store.orphans import set_aside
from medes.errors import StoreFullError
from medes.units import bytes_text

META_VERSION = 1


async def write_file(
    agent: Agent,
    entry: SandboxEntry,
    image: native.MemoryImage,
    encoded: native.EncodedImage,
    planned: Planned,
    pins: OpPins,
) -> native.SandboxFile:
    """Gives pins back on bases that no page came to refer to. Raises store_full, io."""
    _require_room(agent, encoded.blob_bytes)
    used_ids = set(encoded.base_ids)
    unused = pins.keep_only(used_ids)
    meta = {
        "version": META_VERSION,
        "readable_from": 1,
        "namespace": agent.subjects_of(entry.spec).place(),
        "spec": entry.record(),
        "holder": pins.holder,
        "pins": pins.by_node,
        "descriptors": [d.to_json() for i, d in planned.descriptors.items() if i in used_ids],
        "endpoints": [endpoints_to_json(e) for e in planned.endpoints.values()],
        "figures": figures(entry),
    }
    path = agent.sandbox_path(entry.id)
    await agent.in_ops(set_aside, path)  # not ours, or the agent would know it
    file = await agent.in_ops(native.SandboxFile.create, str(path), json.dumps(meta).encode(), image, encoded)
    unpin(agent, pins.holder, unused)
    return file


def figures(entry: SandboxEntry) -> dict[str, object]:
    """What is known of the sandbox before its pages go."""
    return {"warm_bytes": entry.warm_bytes, "is_base": entry.is_base}


def _require_room(agent: Agent, blob_bytes: int) -> None:
    """What warm sandboxes keep for their next op goes first."""
    limit = agent.settings.patch_store_limit_bytes
    used = agent.accounting.patch_store_bytes
    if used + blob_bytes > limit and agent.accounting.previous_bytes:
        agent.drop_previous()
        used = agent.accounting.patch_store_bytes
    if used + blob_bytes > limit:
        raise StoreFullError(
            f"{bytes_text(blob_bytes)} of patches do not fit: {bytes_text(used)} of {bytes_text(limit)} are used",
            object=str(agent.settings.shm_path),
            hint="raise patch_store_limit_bytes, or purge sandboxes",
        )
