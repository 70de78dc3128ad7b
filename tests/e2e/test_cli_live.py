"""The command line against a real agent: sandboxes from register to rm, the files they leave, the metrics."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest

from medes.errors import NotFoundError, WrongStateError
from tests.support.cluster import Cluster
from tests.support.counter_app import App
from tests.support.ports import free_port

pytestmark = pytest.mark.live


def medes(*arguments: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "medes", *arguments], capture_output=True, text=True, timeout=120
    )
    return done.returncode, done.stdout, done.stderr


def test_a_sandbox_by_command_line(
    make_cluster: Callable[..., Cluster], make_app: Callable[..., App]
) -> None:
    metrics = f"127.0.0.1:{free_port()}"
    cluster = make_cluster(nodes=1, metrics_address=metrics)
    agent = cluster.agents[0]
    app = make_app()

    def ask(*arguments: str) -> Any:
        code, out, err = medes("sandbox", *arguments, "--agent", agent.address, "--json")
        assert code == 0, err
        return json.loads(out)

    made = ask("register", "counter", "--pid", str(app.pid), "--id", "one", "--no-timers")
    assert (made["sandbox_id"], made["state"], made["pids"]) == ("one", "warm", [app.pid])
    report = ask("dedup", "one")["report"]
    assert report["gross_saved_bytes"] > 0.5 * report["warm_bytes"] > 0
    assert report["gross_saved_bytes"] == report["warm_bytes"] - sum(
        report[part] for part in ("patch_bytes", "table_bytes", "resident_bytes")
    )
    row = ask("ls")[0]
    assert (row["state"], row["dedup_count"], row["is_base"]) == ("dedup", 1, True)

    told = ask("explain", "one")
    (share,) = told["bases"]
    assert (told["sandbox"]["state"], told["patch_bytes"]) == ("dedup", report["patch_bytes"])
    assert (told["ops"][0]["kind"], told["ops"][0]["outcome"]) == ("dedup", "done")
    assert (told["next_action"], told["next_reason"]) == ("none", "its timers are disabled")
    code, out, err = medes("sandbox", "explain", "one", "--agent", agent.address)
    assert code == 0 and "one: dedup for" in out and f"{share['base_id']:016x}" in out, err

    def base(*arguments: str) -> tuple[int, Any, str]:
        code, out, err = medes("base", *arguments, "--agent", agent.address, "--json")
        return code, json.loads(out), err

    _, (held,), _ = base("ls")
    assert (held["base"]["base_id"], held["sandboxes"], held["made_by"]) == (share["base_id"], 1, "one")
    code, freed, err = base("rm", "--force", held["id"])
    assert (code, freed) == (WrongStateError.exit_code, {"freed_bytes": {}}) and "pinned by" in err
    code, out, err = medes("base", "ls", "--agent", agent.address)
    assert code == 0 and held["id"] in out and "in use" in out

    # The files of a running agent may be looked at.
    code, out, err = medes("inspect", "--verify", "--json", str(agent.shm), str(agent.state_dir))
    assert code == 0, err
    files = {f["kind"]: f for f in json.loads(out)}
    assert files["slab"]["verified"] is True
    sandbox = files["sandbox file"]
    assert (sandbox["meta"]["spec"]["sandbox_id"], sandbox["verified"]) == ("one", True)
    assert files["journal"]["records"]["dedup"] >= 1
    assert files["journal"]["damaged_lines"] == 0

    with urllib.request.urlopen(f"http://{metrics}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    assert 'medes_agent_dedups_total{outcome="done"} 1.0' in text
    assert 'medes_agent_sandboxes{state="dedup"} 1.0' in text
    saved = next(
        line for line in text.splitlines() if line.startswith("medes_agent_dedup_gross_saved_bytes_total ")
    )
    assert float(saved.split()[1]) == report["gross_saved_bytes"]

    restored = ask("restore", "one", "--eager")["report"]
    assert restored["was_dedup"] and restored["complete_us"] > 0
    app.ask()
    assert base("rm", held["id"], "--force")[:2] == (0, {"freed_bytes": {held["id"]: held["bytes"]}})
    assert ask("rm", "one") == {"removed": ["one"]}
    assert ask("ls") == []
    code, _, err = medes("sandbox", "restore", "one", "--agent", agent.address)
    assert (code, "not_found" in err) == (NotFoundError.exit_code, True)
    app.close()
    code, _, err = medes("sandbox", "register", "f", "--pid", str(app.pid), "--agent", agent.address)
    assert code == NotFoundError.exit_code, err
