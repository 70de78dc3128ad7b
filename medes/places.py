"""Where the daemons are unless somebody says otherwise. Imports nothing: every command needs it."""

RUNTIME_DIR = "/run/medes"
DEFAULT_AGENT_ADDRESS = f"unix:{RUNTIME_DIR}/agent.sock"
DEFAULT_CONTROLLER_ADDRESS = "127.0.0.1:7070"
