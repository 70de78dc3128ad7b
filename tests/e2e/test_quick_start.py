"""The quick start of README.md, pasted into a shell as it stands."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.support.docs_blocks import ROOT, code_blocks

# A machine of its own: loopback, /run, /dev/shm and /tmp, so that default addresses and folders are free.
OWN_MACHINE = """
set -eu
mount --make-rslave /
for place in /run /dev/shm /tmp; do mount -t tmpfs tmpfs $place; done
"$0" -c 'import fcntl, socket, struct; s = socket.socket(); fcntl.ioctl(s, 0x8914, struct.pack("16sH22x", b"lo", 1))'
"""
AFTER = """
echo "left: $(ls -A /tmp /dev/shm | grep -v : | tr '\\n' ' ')"
echo "running: $(jobs -p | tr '\\n' ' ')"
"""


@pytest.mark.live
def test_the_quick_start_as_it_stands() -> None:
    set_up, by_hand, end = code_blocks("README.md", "sh", "Quick start")
    assert set_up.startswith("make build")
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
    resident = re.search(r"^Rss: +(\d+) kB", done.stdout, re.MULTILINE)
    assert resident is not None and int(resident[1]) < 20_000
    assert len(re.findall(r"^demo-\S+ .*\bdedup\b", done.stdout, re.MULTILINE)) == 2
    # Woken by the restore, not by itself before it.
    assert "already" not in done.stdout
    left = done.stdout[done.stdout.index("left:") :].split()
    assert left == ["left:", "running:"]
