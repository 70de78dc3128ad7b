"""Sandboxes that are processes, and how an agent takes and gives back their memory."""
