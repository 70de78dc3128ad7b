"""How the function host talks to an instance: the contract that it asks for, and the project's own one, `native`."""
