"""What README.md tells a reader to paste, and a machine of its own to paste it on."""

from __future__ import annotations

import re
from pathlib import Path

# Loopback, /run, /dev/shm and /tmp are its own, so that default addresses and folders are free. For `bash -c`, in
# namespaces of its own for mounts and network; $0 is a Python.
OWN_MACHINE = """
set -e
mount --make-rslave /
exec 9<.
for place in /run /dev/shm /tmp; do mount -t tmpfs tmpfs $place; done
# A checkout below one of them is still wanted.
if ! [ -d "$PWD" ]; then mkdir -p "$PWD" && mount --no-canonicalize --bind /proc/self/fd/9 "$PWD" && cd "$PWD"; fi
"$0" -c 'import fcntl, socket, struct; s = socket.socket(); fcntl.ioctl(s, 0x8914, struct.pack("16sH22x", b"lo", 1))'
"""


def code_blocks(path: Path, language: str, section: str = "") -> list[str]:
    """Contents of a document's fenced blocks of this language, in order; with `section`, of the part below that heading."""
    text = path.read_text()
    if section:
        text = text.split(f"\n## {section}\n", 1)[1].split("\n## ", 1)[0]
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def by_hand(readme: Path) -> str:
    """The commands without the set-up before them and the end after them."""
    return code_blocks(readme, "sh", "Quick start")[1]
