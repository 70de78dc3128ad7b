"""Simulated time: what takes hours on a node takes moments here, and the same moments every time."""
