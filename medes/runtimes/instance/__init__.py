"""Sandbox's side. Its memory is what gets deduplicated: it imports the standard library only."""
