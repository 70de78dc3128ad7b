"""The restore API: what runtimes and operators call."""
