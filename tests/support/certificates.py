"""Throw-away certificates, as the benchmark makes them too."""

from medes.bench.certificates import Authority

__all__ = ["Authority"]
