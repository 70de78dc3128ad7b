"""The controller as this agent calls it."""
