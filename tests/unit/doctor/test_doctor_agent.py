"""What `medes doctor` says of a running agent: sandboxes that wait and files that nobody knows."""

from __future__ import annotations

from pathlib import Path

import pytest
from medes.rpc.gen import agent_pb2 as pb
from medes.rpc.gen.agent_pb2_grpc import add_AgentServiceServicer_to_server

from medes.doctor import agent as doctor_agent
from tests.support.fake_agent import FakeAgent
from tests.support.served import served


class Held(FakeAgent):
    async def ListOrphans(self, request: object, context: object) -> pb.ListOrphansResponse:
        files = [pb.OrphanFile(name=f"sandbox-{n}.medes", bytes=4096, reason="is damaged") for n in range(12)]
        return pb.ListOrphansResponse(orphans=files if self.sandboxes else [])


def test_it_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held()
    with served(lambda s: add_AgentServiceServicer_to_server(held, s), f"unix:{tmp_path}/a.sock") as address:
        monkeypatch.setenv("MEDES_AGENT", address)
        assert [(c.works, c.detail) for c in doctor_agent.probe()] == [(True, "none"), (True, "none")]
        held.sandboxes["a"] = pb.Sandbox(sandbox_id="a", waiting="permission_denied: no right")
        waiting, orphans = doctor_agent.probe()
        assert not waiting.works and waiting.detail == "a: permission_denied: no right"
        assert not orphans.works and orphans.detail.startswith("sandbox-0.medes (4 KiB): is damaged; ")
        assert orphans.detail.endswith("; and 2 more")


def test_without_an_agent_nothing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDES_AGENT", f"unix:{tmp_path}/none.sock")
    assert list(doctor_agent.probe()) == []


def test_an_agent_that_refuses_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(lambda s: None, f"unix:{tmp_path}/a.sock") as address:
        monkeypatch.setenv("MEDES_AGENT", address)
        (check,) = doctor_agent.probe()
        assert not check.works and check.detail
