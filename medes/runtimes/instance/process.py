"""The process of one function instance: `python -P -m medes.runtimes.instance.process`, started by the function host.

It serves one request at a time over an inherited socket and stays warm in between. Its memory is what gets
deduplicated, so it imports little: the standard library and the function. A handler's exception is an answer,
not an end: the instance stays usable. It ends when the host closes the socket.
"""

import importlib
import importlib.util
import json
import os
import socket
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from medes.runtimes.instance import hooks, wire

TRACEBACK_LINES_MAX = 50
TRACEBACK_LINE_CHARS_MAX = 1000


class Context:
    """What AWS Lambda hands to a handler as its second argument."""

    function_version = "$LATEST"
    identity = None
    client_context = None

    def __init__(self, identity: SimpleNamespace, request_id: str, timeout_ms: float) -> None:
        self.function_name = identity.name
        self.memory_limit_in_mb = identity.memory_mb
        self.invoked_function_arn = f"arn:medes:function:{identity.tenant}:{identity.name}"
        self.log_group_name = f"/medes/{identity.name}"
        self.log_stream_name = identity.instance
        self.aws_request_id = request_id
        self.instance_id = identity.instance
        self._deadline = time.monotonic() + timeout_ms / 1000

    def get_remaining_time_in_millis(self) -> int:
        """Milliseconds until the host gives up on this request, never negative."""
        return max(0, int((self._deadline - time.monotonic()) * 1000))

    def log(self, message: object) -> None:
        """Writes to the instance's log."""
        print(message, file=sys.stderr, flush=True)


def error_of(error: BaseException, skip_frames: int = 0) -> dict[str, Any]:
    """An exception as the host reports it: type, message and a bounded traceback."""
    import traceback  # only failures pay for it: see the module's docstring

    frames = traceback.format_tb(error.__traceback__)[skip_frames:]
    lines = "".join(frames).splitlines()[-TRACEBACK_LINES_MAX:]
    return {
        "type": type(error).__name__,
        "message": str(error)[:TRACEBACK_LINE_CHARS_MAX],
        "traceback": [line[:TRACEBACK_LINE_CHARS_MAX] for line in lines],
    }


def load(handler: str) -> Callable[[Any, Context], Any]:
    """Imports "module:callable". Whatever the function's import raises goes to the caller."""
    module_name, _, attribute_path = handler.partition(":")
    target: Any = importlib.import_module(module_name)
    for attribute in attribute_path.split("."):
        target = getattr(target, attribute)
    if not callable(target):
        raise TypeError(f"{handler} is a {type(target).__name__}, not a callable")
    return target  # type: ignore[no-any-return]


def invoke(handler: Callable[[Any, Context], Any], message: dict[str, Any], context: Context) -> bytes:
    """Runs the handler and packs its answer; any failure becomes an error answer."""
    begun = time.perf_counter_ns()
    answer: dict[str, Any] = {"op": "answer", "id": message["id"]}
    try:
        result = handler(message.get("event"), context)
    except (Exception, SystemExit) as error:
        answer["error"] = error_of(error, skip_frames=1)
    else:
        answer["result"] = result
    answer["handler_us"] = (time.perf_counter_ns() - begun) // 1000
    try:
        return wire.pack(answer)
    except (TypeError, ValueError, RecursionError, wire.FrameError) as error:
        answer.pop("result", None)
        answer["error"] = {"type": "MarshalError", "message": str(error)[:1000], "traceback": []}
        return wire.pack(answer)


def run_hook(message: dict[str, Any]) -> bytes:
    """Runs the hooks of a phase; answers how many ran, or the error of the one that failed."""
    answer: dict[str, Any] = {"op": "answer", "id": message["id"]}
    try:
        answer["result"] = hooks.run(str(message["phase"]))
    except (Exception, SystemExit) as error:
        answer["error"] = error_of(error, skip_frames=1)
    return wire.pack(answer)


def serve(sock: socket.socket, handler: Callable[[Any, Context], Any], identity: SimpleNamespace) -> None:
    """Answers requests until the host closes the socket."""
    while True:
        message = wire.receive(sock)
        if message is None:
            return
        if message.get("op") == "invoke":
            context = Context(identity, str(message["id"]), float(message.get("timeout_ms", 30_000)))
            sock.sendall(invoke(handler, message, context))
        elif message.get("op") == "hook":
            sock.sendall(run_hook(message))
        else:
            raise wire.FrameError(f"unknown operation {message.get('op')!r}")


def main() -> int:
    identity = SimpleNamespace(**json.loads(sys.argv[1]))
    sock = socket.socket(fileno=identity.fd)
    sock.set_inheritable(False)
    # Worker processes of the function must not keep the connection open after the instance has gone.
    os.register_at_fork(after_in_child=sock.close)
    sys.path.insert(0, identity.folder)
    if importlib.util.find_spec("snapshot_restore_py") is None:
        sys.modules["snapshot_restore_py"] = hooks
    begun = time.perf_counter_ns()
    try:
        handler = load(identity.handler)
    except (Exception, SystemExit) as error:
        wire.send(sock, {"op": "ready", "error": error_of(error, skip_frames=1)})
        return 1
    load_us = (time.perf_counter_ns() - begun) // 1000
    counts = {"restore_hooks": hooks.count("after_restore"), "snapshot_hooks": hooks.count("before_snapshot")}
    wire.send(sock, {"op": "ready", "load_us": load_us, **counts})
    try:
        serve(sock, handler, identity)
    except (ConnectionError, wire.FrameError) as error:
        print(f"medes instance {identity.instance}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
