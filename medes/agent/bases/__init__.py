"""Bases of this node, and what is known of others'."""
