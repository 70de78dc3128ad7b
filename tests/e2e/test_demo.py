"""`medes demo` and `medes function` as a user runs them, on real daemons and a small function."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medes.errors import AgentUnreachableError, HostUnreachableError
from tests.support import seed
from tests.support.cluster import Cluster, wait_until

CODE = """
import os, random
from medes.runtimes.instance.hooks import register_after_restore
data = [random.Random(n).randbytes(2000) for n in range(2000)]
seen = set()
woken = []
register_after_restore(woken.append, 1)
def handler(event, context):
    seen.add(event["seed"])
    return {"sum": sum(len(part) + part[event["seed"] % 2000] for part in data), "mine": id(data) and os.getpid()}
"""
UNSTEADY = """
count = 0
def handler(event, context):
    global count
    count += 1
    return count
"""
MEDES = [sys.executable, "-m", "medes"]
FUNCTION_KEYS = {
    "name", "instances", "dedup_count", "warm_bytes", "kept_bytes", "base_share_bytes", "gross_saved_ratio",
    "saved_ratio", "dedup_ms_p50",
    "cold_start_ms_p50", "warm_ms_p50", "restore_first_response_ms_p50", "restore_complete_ms_p50", "state_verified",
}  # fmt: skip
CLUSTER_KEYS = {
    "warm_bytes", "kept_bytes", "base_bytes", "gross_saved_ratio", "saved_ratio", "base_pages_read_remote",
}  # fmt: skip


@pytest.fixture
def functions(tmp_path: Path) -> Path:
    for name, code, idempotent in (("steady", CODE, "true"), ("unsteady", UNSTEADY, "false")):
        folder = tmp_path / "functions" / name
        folder.mkdir(parents=True)
        (folder / "code.py").write_text(code)
        (folder / "function.toml").write_text(
            f'name = "{name}"\nhandler = "code:handler"\nevent = {{ seed = 1 }}\nidempotent = {idempotent}\n'
        )
    return tmp_path / "functions"


def left_behind(folder: Path) -> list[str]:
    """Files, shared memory and processes of a demo that ran with TMPDIR=folder."""
    clusters = [path.name for path in folder.glob("medes-*")]
    shm = [path.name for path in Path("/dev/shm").iterdir() if any(path.name.startswith(c) for c in clusters)]
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if str(folder / "medes-cluster-") in (entry / "cmdline").read_text():
                    found.append(f"process {entry.name}")
            except OSError:
                continue
    return clusters + shm + found


def demo(functions: Path, tmp: Path, *options: str) -> "subprocess.Popen[str]":
    tmp.mkdir(exist_ok=True)
    return subprocess.Popen(
        [*MEDES, "demo", "--functions", str(functions), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp)},
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


@pytest.mark.parametrize("driver", [pytest.param("live", marks=pytest.mark.live), "image"])
def test_the_demo_saves_restores_and_verifies(functions: Path, tmp_path: Path, driver: str) -> None:
    options = ["--instances", "2", "--nodes", "2", "--transport", "tcp", "--driver", driver, "--json"]
    process = demo(functions, tmp_path / "t", *options)
    output, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    report = json.loads(output)
    assert set(report) == {"nodes", "transport", "functions", "cluster"}
    assert (report["nodes"], report["transport"]) == (2, "tcp+tls")
    assert [f["name"] for f in report["functions"]] == ["steady", "unsteady"]
    for function in report["functions"]:
        assert set(function) == FUNCTION_KEYS
        assert function["instances"] == function["dedup_count"] == 2
        gross, share = function["gross_saved_ratio"], function["base_share_bytes"] / function["warm_bytes"]
        assert gross == pytest.approx(1 - function["kept_bytes"] / function["warm_bytes"], abs=1e-3)
        assert function["saved_ratio"] == pytest.approx(gross - share, abs=1e-3) and share > 0
        # The image driver gives nothing back.
        assert 0.3 < gross < 1 if driver == "live" else -1 < gross < 0
        assert function["restore_complete_ms_p50"] > 0
    assert [f["state_verified"] for f in report["functions"]] == [True, None]
    cluster = report["cluster"]
    assert set(cluster) == CLUSTER_KEYS
    assert cluster["warm_bytes"] == sum(f["warm_bytes"] for f in report["functions"])
    net = 1 - (cluster["kept_bytes"] + cluster["base_bytes"]) / cluster["warm_bytes"]
    assert cluster["saved_ratio"] == pytest.approx(net, abs=1e-3)
    assert cluster["base_pages_read_remote"] > 0
    assert left_behind(tmp_path / "t") == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_demo_leaves_nothing(functions: Path, tmp_path: Path, number: signal.Signals) -> None:
    generator = seed.rng("interrupted demo", number)
    longest_s, hits = 3.0, 0
    for turn in range(12):
        if hits == 2:
            break
        tmp = tmp_path / f"{turn}"
        process = demo(functions, tmp, "--instances", "3")
        wait_until(lambda tmp=tmp: list(tmp.glob("medes-cluster-*/node1.sock")), "an agent listens")
        time.sleep(generator.random() * longest_s)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        if process.returncode == 0:  # it was done before the signal came
            longest_s /= 2
            continue
        hits += 1
        if number == signal.SIGINT:
            assert errors == "interrupted\n"
        wait_until(lambda tmp=tmp: not left_behind(tmp), f"nothing of turn {turn} is left")
    assert hits == 2, "never interrupted"


@pytest.mark.parametrize(
    ("options", "code", "complaint"),
    [
        (["--functions", "/nowhere"], 3, "no such directory"),
        (["--instances", "0"], 2, "0 is not in the range"),
        (["--transport", "pigeon"], 2, "pigeon"),
    ],
)
def test_wrong_usage(options: list[str], code: int, complaint: str) -> None:
    done = subprocess.run([*MEDES, "demo", *options], capture_output=True, text=True, timeout=60)
    assert done.returncode == code
    assert complaint in done.stderr


@pytest.mark.skipif(
    Path("/sys/class/infiniband").is_dir() and any(Path("/sys/class/infiniband").iterdir()),
    reason="this machine has an RDMA device",
)
def test_a_transport_that_cannot_run_is_an_error(functions: Path, tmp_path: Path) -> None:
    process = demo(functions, tmp_path / "t", "--transport", "rdma")
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 6
    assert "unsupported" in errors and "RDMA" in errors
    assert left_behind(tmp_path / "t") == []


def test_a_function_that_does_not_load_ends_the_demo(functions: Path, tmp_path: Path) -> None:
    (functions / "steady" / "code.py").write_text("raise RuntimeError('not today')\n")
    process = demo(functions, tmp_path / "t", "--instances", "1")
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 20
    assert "not today" in errors
    assert errors.startswith("medes: function: ")
    assert left_behind(tmp_path / "t") == []


@pytest.mark.live
def test_a_host_on_a_real_agent(
    functions: Path, tmp_path: Path, make_cluster: Callable[..., Cluster]
) -> None:
    agent = make_cluster(nodes=1).agents[0]
    socket = tmp_path / "host.sock"
    environment = {**os.environ, "MEDES_FUNCTION_HOST": str(socket)}

    def run(*arguments: str, code: int = 0) -> Any:
        done = subprocess.run(
            [*MEDES, "function", *arguments], capture_output=True, text=True, timeout=100, env=environment
        )
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout) if "--json" in arguments else done.stderr

    assert "medes function serve" in run("ls", code=HostUnreachableError.exit_code)
    host = subprocess.Popen(
        [*MEDES, "function", "serve", "--agent", f"unix:{agent.socket}"],
        env=environment,
        start_new_session=True,
    )
    try:
        wait_until(socket.exists, "the host listens")
        row = run("deploy", str(functions / "steady"), "--instances", "2", "--json")
        ids = [instance["instance_id"] for instance in row["instances"]]
        pids = [instance["pid"] for instance in row["instances"]]
        before = run("invoke", "steady", "--instance", ids[0], "--json")
        assert before["start"] == "warm"
        with agent.client() as client:
            wait_until(lambda: client.get(ids[0]).state.label == "warm", "the request's end is known")
            assert client.dedup(ids[0]).report.gross_saved_bytes > 0
            again = run("invoke", "steady", "--instance", ids[0], "--json")
        assert (again["start"], again["result"]) == ("dedup", before["result"])
        with agent.client() as client:
            wait_until(lambda: client.get(ids[0]).state.label == "warm", "the restore is complete")
            client.dedup(ids[0])
        agent.kill()
        # Without its agent the warm instance serves, the dedup'd one waits; with it again, it wakes as it was.
        assert run("invoke", "steady", "--instance", ids[1], "--json")["start"] == "warm"
        assert run("invoke", "steady", "--instance", ids[0], code=AgentUnreachableError.exit_code)
        agent.start()
        # The host's channel may still be in the back-off of its last refused connection.
        for _ in range(20):
            last = subprocess.run(
                [*MEDES, "function", "invoke", "steady", "--instance", ids[0], "--json"],
                capture_output=True, text=True, timeout=100, env=environment,
            )  # fmt: skip
            if last.returncode != AgentUnreachableError.exit_code:
                break
            time.sleep(0.5)
        assert last.returncode == 0, last.stderr
        last = json.loads(last.stdout)
        assert (last["start"], last["result"]) == ("dedup", before["result"])
        assert run("invoke", "steady", "--event", '{"seed": "x"}', code=20)
        assert "not JSON" in run("invoke", "steady", "--event", "{", code=2)
        assert run("invoke", "nobody", code=3)
        assert [f["name"] for f in run("ls", "--json")["functions"]] == ["steady"]
        run("rm", "steady")
        assert run("ls", "--json")["functions"] == []
    finally:
        host.terminate()
        assert host.wait(30) == 0
    assert not socket.exists()
    wait_until(
        lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "instances end with their host"
    )
