"""Medes: memory deduplication for serverless sandboxes."""

__version__ = "0.1.0"
