"""What other agents call."""
