"""Dedup, restore and what they share: each op changes one sandbox."""
