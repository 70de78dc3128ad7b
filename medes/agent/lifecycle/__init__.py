"""What the agent does on its own motion."""
