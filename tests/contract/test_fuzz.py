"""Every fuzz target has a corpus, a length and a row that says what it is for."""

from __future__ import annotations

import re
from pathlib import Path

from tests.support.fuzz_corpus import pack, unpack

ROOT = Path(__file__).parents[2]
FUZZ = ROOT / "native" / "fuzz"
TARGETS = sorted(p.stem.removeprefix("fuzz_") for p in FUZZ.glob("fuzz_*.cc"))
CORPUS_BYTES_MAX = 64 << 10  # as text: a corpus is a sample, what else was found is not kept


def test_every_target_has_a_length_and_inputs_within_it(tmp_path: Path) -> None:
    lengths = dict(line.split() for line in (FUZZ / "lengths.txt").read_text().splitlines())
    assert sorted(lengths) == TARGETS
    assert sorted(p.stem for p in (FUZZ / "corpus").iterdir()) == TARGETS
    for target in TARGETS:
        file = FUZZ / "corpus" / f"{target}.hex"
        assert 0 < file.stat().st_size <= CORPUS_BYTES_MAX, target
        count = unpack(file, tmp_path / target)
        assert count == len(list((tmp_path / target).iterdir())) > 0
        assert max(p.stat().st_size for p in (tmp_path / target).iterdir()) <= int(lengths[target]), target
        assert pack(tmp_path / target, tmp_path / "again.hex") == count
        assert (tmp_path / "again.hex").read_text() == file.read_text()


def test_every_target_is_described() -> None:
    text = (ROOT / "docs" / "threat-model.md").read_text()
    assert sorted(re.findall(r"^\| `fuzz_(\w+)` \|", text, re.MULTILINE)) == TARGETS
