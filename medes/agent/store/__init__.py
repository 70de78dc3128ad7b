"""The agent's folders."""
