"""The dedup benchmark on one small function: every scheme runs, verifies, and reports what the format promises."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from medes import native
from medes.bench import dedup
from medes.bench.dedup_baselines import Paper, ksm, lz4, page_digests, zstd
from medes.cli.bench_dedup import cli
from medes.errors import InvalidArgumentError
from medes.native import PAGE_KINDS
from medes.runtimes import manifest
from tests.support import memory


@pytest.fixture
def one_function(tmp_path: Path) -> Path:
    shutil.copytree(manifest.bundled_directory() / "vanilla", tmp_path / "functions" / "vanilla")
    return tmp_path / "functions"


def test_json_lines_of_every_scheme(one_function: Path) -> None:
    result = CliRunner().invoke(
        cli, ["--functions", str(one_function), "--paper-sample", "2", "--json"], catch_exceptions=False
    )
    lines = [json.loads(text) for text in result.output.splitlines()]
    assert {(case["function"], case["scheme"]) for case in lines} == {
        (function, scheme) for function in ("vanilla", "ALL") for scheme in dedup.SCHEMES
    }
    saved = {case["scheme"]: case["saved_ratio"] for case in lines if case["function"] == "ALL"}
    assert 0 < saved["ksm"] < saved["medes-nogroup"] <= saved["medes"] < 1
    assert saved["paper"] < saved["medes"]
    assert abs(saved["medes-untagged"] - saved["medes"]) < 0.0002  # a nonce and a word an image
    for case in lines:
        assert sum(case["pages"].values()) * native.PAGE_BYTES == case["warm_bytes"]
        assert set(case["pages"]) == set(PAGE_KINDS)
        assert {"cpu", "kernel", "commit", "gb_per_s_per_core_encode", "apply_us_per_page"} <= set(case)


def test_schemes_on_known_contents() -> None:
    words = memory.program(4, 1)
    words[: memory.WORDS] = [0] * memory.WORDS
    words[2 * memory.WORDS : 3 * memory.WORDS] = words[memory.WORDS : 2 * memory.WORDS]
    image = native.MemoryImage.from_buffer(memory.packed(words))
    merged = ksm(image, set())
    assert merged.pages == {"zero": 1, "identical": 1, "raw": 2}
    assert ksm(image, page_digests(image)).pages == {"zero": 1, "identical": 3}
    for scheme in (zstd, lz4):
        outcome = scheme(image)
        assert outcome.pages["zero"] == 1
        assert outcome.pages.total() == 4
    paper = Paper(sample=10)
    paper.add_base(image)
    changed = list(words)
    changed[memory.WORDS + 5] ^= 1
    outcome = paper.encode(native.MemoryImage.from_buffer(memory.packed(changed)))
    assert outcome.pages == {"zero": 1, "identical": 2, "patch": 1}
    assert 0 < outcome.patch_bytes < 100


def test_bad_choices_are_refused(one_function: Path) -> None:
    with pytest.raises(InvalidArgumentError):
        list(dedup.run(one_function, 1, True, ["medes"]))
    with pytest.raises(InvalidArgumentError):
        list(dedup.run(one_function, 2, True, ["gzip"]))


def test_address_randomisation_is_put_back() -> None:
    def flags() -> int:
        return int(Path("/proc/self/personality").read_text(), 16)

    before = flags()
    with dedup.address_randomisation(False):
        assert flags() & dedup.ADDR_NO_RANDOMIZE
    assert flags() == before
