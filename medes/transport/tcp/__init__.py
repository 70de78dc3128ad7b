"""TCP and TLS, which every node has."""
