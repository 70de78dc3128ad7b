"""What nodes and observers call."""
