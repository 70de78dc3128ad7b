"""Code blocks of the documentation, for tests that run them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def code_blocks(file: str, language: str, section: str = "") -> list[str]:
    """Contents of the fenced blocks of this language, in order; with `section`, of the part below that heading."""
    text = (ROOT / file).read_text()
    if section:
        text = text.split(f"\n## {section}\n", 1)[1].split("\n## ", 1)[0]
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
