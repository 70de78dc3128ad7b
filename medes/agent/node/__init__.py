"""The machine and the process that the agent runs in."""
