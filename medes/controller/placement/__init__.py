"""Who becomes a base."""
