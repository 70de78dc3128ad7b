"""Every format that was ever released is read: files that agents of those versions left behind, small and whole."""

from __future__ import annotations

import base64
import json
import shutil
import zlib
from pathlib import Path

import pytest

from medes import native
from medes.agent.bases.bases import BaseMeta
from medes.agent.journal.journal import Journal
from medes.agent.journal.journal_state import JournalState
from medes.agent.journal.records import DEDUP
from medes.agent.ops.take_back import evicted_of, read_meta
from medes.agent.sandboxes.sandbox import SandboxSpec
from medes.agent.sandboxes.working_sets import WorkingSetStore, unpack_pages
from medes.agent.store.store_key import KEY_BYTES, KEY_NAME
from medes.drivers.process.subjects import ProcessSubjects
from tests.golden.make_store_vectors import VECTORS

GOLDEN = json.loads(VECTORS.read_text())


@pytest.fixture(params=sorted(GOLDEN))
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    for name, text in GOLDEN[request.param].items():
        path = tmp_path / name
        path.parent.mkdir(mode=0o700, exist_ok=True)
        path.write_bytes(zlib.decompress(base64.b64decode(text)))
    if (tmp_path / KEY_NAME).exists():  # its files must be sealed with it
        native.set_store_key(str(tmp_path), (tmp_path / KEY_NAME).read_bytes()[:KEY_BYTES])
    return tmp_path


def test_sandboxes_can_be_restored_from_their_files(folder: Path) -> None:
    (slab_path,) = folder.glob("base-*.slab")
    slab = native.Slab.open(str(slab_path))
    assert slab.verify()
    for path in sorted(folder.glob("sandbox-*.medes")):
        file = native.SandboxFile.open(str(path))
        meta = read_meta(file)
        spec = SandboxSpec.from_json(meta["spec"])
        assert (path.name, spec.function, spec.driver) == (f"sandbox-{spec.sandbox_id}.medes", "f", "image")
        subject = ProcessSubjects().from_json(spec.sandbox_id, meta["spec"])
        assert subject.roots == list(zip(file.pids, file.start_times, strict=True))
        evicted = evicted_of(file, meta)
        assert evicted.pins == {"golden": [slab.base_id]}
        bases = native.BaseSet()
        bases.add_local(slab)
        file.verify(bases)  # each page is rebuilt and equals its tag or checksum
        assert file.page_count > 0


def test_what_an_older_agent_kept_can_be_read(folder: Path) -> None:
    (slab_path,) = folder.glob("base-*.slab")
    slab = native.Slab.open(str(slab_path))
    meta = BaseMeta.of(slab)
    assert meta is None or (meta.domain, meta.function, meta.sandbox_id) == ("default", "f", "s0")
    journal = Journal(folder / "journal")
    state = JournalState.replay(journal.read())
    journal.close()
    assert journal.damaged_lines == state.damaged_records == 0 and state.unknown == []
    assert {i: s.phase for i, s in state.sandboxes.items()} == {"s0": DEDUP, "s1": DEDUP}
    (base,) = state.bases.values()
    assert int(base.descriptor["base_id"]) == slab.base_id
    (folder / "working-sets").chmod(0o700)  # as agents have made it
    for path in (folder / "working-sets").iterdir():
        path.chmod(0o600)
    store = WorkingSetStore(folder / "working-sets")
    packed, _ = store.get("d", "f").prefetch()
    assert set(unpack_pages(packed)) <= {(1, 10), (1, 11), (2, 5)}
    assert len(store.get("d", "f")) == 3


def test_a_changed_byte_of_a_page_is_noticed(folder: Path) -> None:
    """So that the tests above would fail if pages came back wrong."""
    (path,) = folder.glob("base-*.slab")
    slab = native.Slab.open(str(path))
    damaged = folder / "damaged.slab"
    shutil.copyfile(path, damaged)
    with damaged.open("r+b") as file:
        file.seek(2 * native.PAGE_BYTES + 64)  # in the first page
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    assert slab.verify() and not native.Slab.open(str(damaged), ours=False).verify()
