"""A server of the Model Context Protocol, as an assistant has one beside it: spoken to by its standard streams."""

from __future__ import annotations

import json
import os
import select
import subprocess
import time
from pathlib import Path
from typing import Any

from medes.bench.asleep_making import Made, Sizes, which
from medes.bench.asleep_state import ANSWER_TIMEOUT_S, item
from medes.errors import CorruptError

COMMAND = "mcp-server-memory"  # of npm's @modelcontextprotocol/server-memory
PROTOCOL = "2024-11-05"
NOTES_PER_NAME = 100
# It compares each note with all others while it takes them, and reads them all for each answer.
NOTES_SHARE = 10
READ_BYTES = 1 << 20


def mcp(folder: Path, port: int, sizes: Sizes) -> Made:
    graph = Graph(sizes.items // NOTES_SHARE)
    environment = {"MEMORY_FILE_PATH": str(folder / "memory.jsonl")}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return Made([which(COMMAND)], graph, environment, **pipes, attach=graph.attach, close=graph.close)


class Graph:
    """A graph of names with `count` notes in all."""

    def __init__(self, count: int) -> None:
        self.expected = [
            {
                "name": f"name {begin}",
                "entityType": "bench",
                "observations": [item(n) for n in range(begin, min(begin + NOTES_PER_NAME, count))],
            }
            for begin in range(0, count, NOTES_PER_NAME)
        ]
        self._lines: Lines | None = None
        self._asked = 0

    def attach(self, process: subprocess.Popen[bytes]) -> None:
        self._lines = Lines(process)
        self._ask(
            "initialize",
            protocolVersion=PROTOCOL,
            capabilities={},
            clientInfo={"name": "medes bench", "version": "1"},
        )
        self._lines.write(json.dumps({"jsonrpc": "2.0", "method": "notifications/initialized"}))

    def fill(self, port: int) -> None:
        self._ask("tools/call", name="create_entities", arguments={"entities": self.expected})

    def probe(self, port: int) -> None:
        if (answer := self._ask("ping")) != {}:
            raise CorruptError(f"answered {str(answer)[:100]} to ping", object=COMMAND)

    def verify(self, port: int) -> None:
        answer = self._ask("tools/call", name="read_graph", arguments={})
        if json.loads(answer["content"][0]["text"])["entities"] != self.expected:
            raise CorruptError("holds another graph", object=COMMAND)

    def close(self) -> None:
        if self._lines is not None:
            self._lines.close()

    def _ask(self, method: str, **parameters: Any) -> Any:
        assert self._lines is not None
        self._asked += 1
        asked = {"jsonrpc": "2.0", "id": self._asked, "method": method, "params": parameters}
        self._lines.write(json.dumps(asked))
        while True:
            answer = json.loads(self._lines.read())
            if answer.get("id") == self._asked:
                break
        if "result" not in answer or answer["result"].get("isError"):
            raise CorruptError(f"refused {method}: {str(answer)[:200]}", object=COMMAND)
        return answer["result"]


class Lines:
    """The standard streams of a process, by lines. Raises OSError where it has ended, TimeoutError where it is silent."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None and process.stdout is not None
        self._in, self._out = process.stdin, process.stdout
        self._read = bytearray()

    def write(self, line: str) -> None:
        self._in.write(line.encode() + b"\n")
        self._in.flush()

    def read(self) -> bytes:
        deadline_s = time.monotonic() + ANSWER_TIMEOUT_S
        searched = 0
        while (end := self._read.find(b"\n", searched)) < 0:
            searched = len(self._read)
            left_s = deadline_s - time.monotonic()
            if left_s <= 0 or not select.select([self._out], [], [], left_s)[0]:
                raise TimeoutError(f"no line within {ANSWER_TIMEOUT_S:g} s")
            part = os.read(self._out.fileno(), READ_BYTES)
            if not part:
                raise ConnectionResetError("its output has ended")
            self._read += part
        line = bytes(self._read[:end])
        del self._read[: end + 1]
        return line

    def close(self) -> None:
        self._in.close()
        self._out.close()
