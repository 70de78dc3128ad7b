"""The journal's records, one function a kind: nobody else spells one. What they add up to is in journal_state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

Record = dict[str, Any]

# What a record's "t" is. Those of a sandbox's phase first; running and warm are not told apart.
WARM, DEDUPING, DEDUP, RESTORING, LOST = "warm", "deduping", "dedup", "restoring", "lost"
SANDBOX, PURGED = "sandbox", "purged"
BASE, BASE_RETIRED, BASE_GONE, PINS = "base", "base_retired", "base_gone", "pins"
NODE, PEER = "node", "peer"


def node(**facts: Any) -> Record:
    """Settings that must not change under existing bases and tokens."""
    return {"t": NODE, **facts}


def peer(endpoints: Mapping[str, Any]) -> Record:
    """How to reach a node that holds pins here or bases of ours."""
    return {"t": PEER, "endpoints": endpoints}


def sandbox(spec: Mapping[str, Any]) -> Record:
    """Registered, or registered again."""
    return {"t": SANDBOX, "spec": spec}


def warm(sandbox_id: str) -> Record:
    """The op before it ended, or was rolled back: no encoded form is needed any more."""
    return {"t": WARM, "id": sandbox_id}


def deduping(sandbox_id: str, path: str, holder: str, pins: Mapping[str, list[int]]) -> Record:
    """A dedup op asks for pins (node → base ids) under this holder's name."""
    return _encoded(DEDUPING, sandbox_id, path, holder, pins, {})


def dedup(
    sandbox_id: str,
    path: str,
    holder: str,
    pins: Mapping[str, list[int]],
    figures: Mapping[str, Any] | None = None,
) -> Record:
    """Committed: the sandbox file is complete and every pin granted."""
    return _encoded(DEDUP, sandbox_id, path, holder, pins, figures or {})


def _encoded(
    kind: str,
    sandbox_id: str,
    path: str,
    holder: str,
    pins: Mapping[str, list[int]],
    figures: Mapping[str, Any],
) -> Record:
    return {
        "t": kind,
        "id": sandbox_id,
        "path": path,
        "holder": holder,
        "pins": pins,
        "figures": figures,
    }


def restoring(sandbox_id: str) -> Record:
    """A restore op began; the sandbox file is still the truth."""
    return {"t": RESTORING, "id": sandbox_id}


def lost(sandbox_id: str, reason: str, *, final: bool) -> Record:
    """Not final: bytes are absent, and may turn up again."""
    return {"t": LOST, "id": sandbox_id, "reason": reason, "final": final}


def purged(sandbox_id: str) -> Record:
    """Forget the sandbox."""
    return {"t": PURGED, "id": sandbox_id}


def base(descriptor: Mapping[str, Any], path: str, sandbox_id: str) -> Record:
    """A slab is complete."""
    return {"t": BASE, "descriptor": descriptor, "path": path, "sandbox_id": sandbox_id}


def base_retired(base_id: int) -> Record:
    """It takes no new pins."""
    return {"t": BASE_RETIRED, "base_id": base_id}


def base_gone(base_id: int) -> Record:
    """Its slab is unlinked."""
    return {"t": BASE_GONE, "base_id": base_id}


def pins(node_id: str, holder: str, domain: str, base_ids: Iterable[int]) -> Record:
    """All that another node pins here for one holder."""
    return {"t": PINS, "node": node_id, "holder": holder, "domain": domain, "base_ids": list(base_ids)}


def unpinned(node_id: str, holder: str) -> Record:
    """That holder pins nothing here any more."""
    return pins(node_id, holder, "", ())
