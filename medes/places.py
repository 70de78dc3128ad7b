"""Where the daemons are unless somebody says otherwise. Imports nothing: every command needs it."""

RUNTIME_DIR = "/run/medes"
DEFAULT_AGENT_ADDRESS = f"unix:{RUNTIME_DIR}/agent.sock"
DEFAULT_CONTROLLER_ADDRESS = "127.0.0.1:7070"


def user_socket_beside(path: str) -> str:
    """Where an agent that listens at `path` listens for users who may not open that: /run/medes/agent-users.sock."""
    stem, dot, suffix = path.rpartition(".")
    return f"{stem}-users.{suffix}" if dot and "/" not in suffix else f"{path}-users"
