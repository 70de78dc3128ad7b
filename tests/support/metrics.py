"""What a daemon tells at its metrics_address."""

from __future__ import annotations

import urllib.request


def sample(address: str, name: str) -> float:
    """One sample, by its name with labels as they are written; 0 where it is not told."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    values = [float(line.rpartition(" ")[2]) for line in lines if line.rpartition(" ")[0] == name]
    return values[0] if values else 0.0
