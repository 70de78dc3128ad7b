"""Chunk hash → base pages: the cluster's fingerprint registry, and the stores that can hold it."""
