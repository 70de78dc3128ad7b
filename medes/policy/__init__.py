"""Policy: pure functions that decide what to keep warm, dedup, purge or make a base. No clocks, no I/O."""
