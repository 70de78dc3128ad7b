"""A sandbox as its agent holds it."""
