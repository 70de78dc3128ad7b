"""The project's own evaluation cases, each over a benchmark of medes.bench."""
