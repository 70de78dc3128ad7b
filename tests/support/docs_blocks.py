"""Code blocks of the documentation, for tests that run them."""

from __future__ import annotations

from pathlib import Path

from medes.eval import quick_start

ROOT = Path(__file__).resolve().parents[2]


def code_blocks(file: str, language: str, section: str = "") -> list[str]:
    """As medes.eval.quick_start has them, of a file of the checkout."""
    return quick_start.code_blocks(ROOT / file, language, section)
