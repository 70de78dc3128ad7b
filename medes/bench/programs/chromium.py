"""Chromium without a screen, with a page open: its script holds the state."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

from medes.bench.asleep_making import Made, Sizes
from medes.bench.asleep_state import ANSWER_TIMEOUT_S, get, items_digest
from medes.errors import CorruptError

PAGE = """<!doctype html><title>bench</title><script>
const items = [];
for (let i = 0; i < COUNT; i++)
  items.push(i + ':' + ((i * 2654435761) % 4294967296).toString(16).padStart(8, '0').repeat(8));
async function state() {
  const digest = await crypto.subtle.digest('SHA-256', new TextEncoder().encode(items.join('')));
  return Array.from(new Uint8Array(digest), byte => byte.toString(16).padStart(2, '0')).join('');
}
</script>"""
# Without a sandbox of its own since root may start it, and without what calls home.
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-breakpad",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


def chromium(folder: Path, port: int, sizes: Sizes) -> Made:
    page = folder / "page.html"
    page.write_text(PAGE.replace("COUNT", str(sizes.items)))
    own = [f"--user-data-dir={folder / 'profile'}", f"--remote-debugging-port={port}"]
    tab = Tab(page, sizes.items)
    return Made(["chromium", *OPTIONS, *own, page.as_uri()], tab)


class Tab:
    """A page with `count` items, asked through the DevTools protocol, over a connection of its own each time."""

    def __init__(self, page: Path, count: int) -> None:
        self._address = page.as_uri()
        self.expected = items_digest(count)

    def fill(self, port: int) -> None:
        pass

    def probe(self, port: int) -> None:
        if (answer := self._evaluate(port, "typeof items")) != "object":
            raise CorruptError(f"answered {answer!r} to a probe", object="tab")

    def verify(self, port: int) -> None:
        if (answer := self._evaluate(port, "state()")) != self.expected:
            raise CorruptError(f"holds other items: {str(answer)[:100]}", object="tab")

    def _evaluate(self, port: int, expression: str) -> Any:
        tabs = [tab for tab in json.loads(get(port, "/json/list")) if tab["url"] == self._address]
        if not tabs:
            raise ConnectionRefusedError("the page is not open yet")
        client = importlib.import_module("websockets.sync.client")
        asked = {
            "id": 1,
            "method": "Runtime.evaluate",
            "params": {"expression": expression, "awaitPromise": True, "returnByValue": True},
        }
        try:
            with client.connect(tabs[0]["webSocketDebuggerUrl"], open_timeout=ANSWER_TIMEOUT_S) as socket:
                socket.send(json.dumps(asked))
                answer = json.loads(socket.recv(ANSWER_TIMEOUT_S))
        except importlib.import_module("websockets.exceptions").WebSocketException as error:
            raise ConnectionResetError(f"no answer of the tab: {error!r}") from None
        return answer["result"]["result"].get("value")
