"""The seed of this test run. MEDES_SEED fixes it; tests/conftest.py prints it with every run."""

from __future__ import annotations

import os
import random

SEED = int(os.environ.get("MEDES_SEED") or random.SystemRandom().randrange(1, 1 << 30))
TEXT = f"MEDES_SEED={SEED}"


def rng(*what: object) -> random.Random:
    """Random numbers of their own for each `what`, the same in every run with this seed."""
    return random.Random(" ".join(map(str, (SEED, *what))))
