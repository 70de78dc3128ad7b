"""Logs stay parseable whatever is logged; metrics are served over HTTP."""

from __future__ import annotations

import io
import json
import logging
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from medes.errors import IoError
from medes.obs.agent_metrics import AgentMetrics
from medes.obs.logs import setup_logs
from medes.obs.metrics_server import MetricsServer
from medes.obs.rpc_metrics import RpcMetrics
from medes.obs.systemd import notify


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield io.StringIO()
    root.handlers[:] = handlers
    root.setLevel(level)


def test_json_lines_carry_extra_fields(stream: io.StringIO) -> None:
    setup_logs("debug", as_json=True, stream=stream)
    try:
        raise ValueError("bad")
    except ValueError:
        logging.getLogger("x").exception("a\nb %d", 5, extra={"sandbox": "s\n1", "path": Path("/p")})
    row = json.loads(stream.getvalue())
    assert (row["message"], row["sandbox"], row["path"], row["level"]) == ("a\nb 5", "s\n1", "/p", "error")
    assert "ValueError: bad" in row["exception"]
    assert row["time"].endswith("Z")


def test_text_lines_stay_single_and_quoted(stream: io.StringIO) -> None:
    setup_logs("info", stream=stream)
    logging.getLogger("x").info(
        "done\nreally", extra={"sandbox": "a b", "n": 3, "evil": "x\nlevel=error", "none": ""}
    )
    logging.getLogger("x").debug("not shown")
    text = stream.getvalue()
    assert text.count("\n") == 1
    assert text.endswith('done\\nreally sandbox="a b" n=3 evil="x\\nlevel=error" none=""\n')


def test_metrics_endpoint() -> None:
    registry = CollectorRegistry()
    metrics = AgentMetrics(registry)
    metrics.sandboxes.labels("warm").set(3)
    metrics.dedup_seconds.observe(0.3)
    rpc = RpcMetrics(registry)
    rpc.observe("/medes.v1.AgentService/Get", "OK", 0.001)
    rpc.observe("/evil/<script>", "OK", 0.001)
    with MetricsServer("127.0.0.1:0", registry) as server:
        with urllib.request.urlopen(f"http://{server.address}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        with pytest.raises(IoError, match="cannot serve metrics"):
            MetricsServer(server.address, registry)
    assert 'medes_agent_sandboxes{state="warm"} 3.0' in text
    assert 'medes_rpc_calls_total{method="Get",status="OK"} 1.0' in text
    assert 'method="other"' in text and "script" not in text
    assert "medes_agent_dedup_seconds_bucket" in text
    server.close()


def test_notify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify("READY=1")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        assert notify("READY=1")
        assert manager.recv(100) == b"READY=1"
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    assert not notify("READY=1")
