"""The quick start of README.md, pasted into a shell as it stands."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import pytest

from medes.eval.quick_start import OWN_MACHINE
from medes.eval.recording import statements
from tests.support.docs_blocks import ROOT, code_blocks

AFTER = """
echo "left: $(ls -A /tmp /dev/shm | grep -v : | tr '\\n' ' ')"
echo "running: $(jobs -p | tr '\\n' ' ')"
"""


@pytest.mark.live
def test_the_quick_start_as_it_stands() -> None:
    set_up, by_hand, end = code_blocks("README.md", "sh", "Quick start")
    assert set_up.startswith("make build")
    assert len(list(statements(by_hand))) <= 5
    # What `make build` made, this test runs on; the rest of the block belongs to the paste.
    set_up = set_up.partition("\n")[2]
    script = "\n".join((OWN_MACHINE, "set +u", set_up, by_hand, end, AFTER))
    if not (ROOT / ".venv" / "bin" / "medes").exists():
        pytest.skip("the quick start's virtual environment is not there")
    unshare = shutil.which("unshare")
    assert unshare is not None
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MEDES_")}
    done = subprocess.run(
        [unshare, "--mount", "--net", "bash", "-c", script, sys.executable],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    before, after = (int(kb) for kb in re.findall(r"^Rss: +(\d+) kB", done.stdout, re.MULTILINE))
    assert after < 20_000 < before
    assert len(re.findall(r"^demo-\S+ .*\bdedup\b", done.stdout, re.MULTILINE)) == 2
    # Woken by the restore, not by itself before it.
    assert "already" not in done.stdout
    left = done.stdout[done.stdout.index("left:") :].split()
    assert [name for name in left if name not in ROOT.parts] == ["left:", "running:"]
