"""A Jupyter kernel with a notebook open: its variables are its state."""

from __future__ import annotations

import importlib
import queue
import sys
from pathlib import Path
from typing import Any

from medes.bench import asleep_sources as sources
from medes.bench.asleep_making import Made, Sizes
from medes.bench.asleep_state import ANSWER_TIMEOUT_S, HOST, items_digest
from medes.errors import CorruptError


def jupyter(folder: Path, port: int, sizes: Sizes) -> Made:
    (folder / "items.py").write_text(sources.PYTHON_ITEMS)
    connection = folder / "connection.json"
    # Its five ports are chosen here; the one that was found is not used.
    importlib.import_module("jupyter_client.connect").write_connection_file(
        str(connection), ip=HOST, key=b"bench"
    )
    variables = Variables(connection, sizes.items)
    environment = {"IPYTHONDIR": str(folder / "ipython"), "JUPYTER_RUNTIME_DIR": str(folder)}
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", str(connection)]
    return Made(command, variables, environment, close=variables.close)


class Variables:
    """`count` items in a variable of the kernel."""

    def __init__(self, connection: Path, count: int) -> None:
        self._connection = connection
        self.expected = items_digest(count)
        self._client: Any = None

    def fill(self, port: int) -> None:
        self._ask("len(globals().setdefault('ITEMS', __import__('items').make()))")

    def probe(self, port: int) -> None:
        if (answer := self._ask("6 * 7")) != "42":
            raise CorruptError(f"answered {answer!r} to 6 * 7", object="kernel")

    def verify(self, port: int) -> None:
        answer = self._ask("__import__('items').state(ITEMS)")
        if answer.strip("'").partition(" ")[2] != self.expected:
            raise CorruptError(f"holds other items: {answer[:100]!r}", object="kernel")

    def close(self) -> None:
        if self._client is not None:
            self._client.stop_channels()

    def _ask(self, expression: str) -> str:
        """What the kernel answers, over a connection that stays. Raises TimeoutError, corrupt where it raised."""
        if self._client is None:
            self._client = importlib.import_module("jupyter_client").BlockingKernelClient(
                connection_file=str(self._connection)
            )
            self._client.load_connection_file()
            self._client.start_channels()
        try:
            reply = self._client.execute(
                "", user_expressions={"answer": expression}, reply=True, timeout=ANSWER_TIMEOUT_S
            )
        except queue.Empty:
            raise TimeoutError(f"no answer of the kernel within {ANSWER_TIMEOUT_S:g} s") from None
        answer = reply["content"]["user_expressions"]["answer"]
        if answer["status"] != "ok":
            raise CorruptError(f"raised {answer.get('ename')}: {answer.get('evalue')}", object="kernel")
        return str(answer["data"]["text/plain"])
