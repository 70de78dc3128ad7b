"""The runtime of docs/integration.md, run as it stands there, and each error that begin() may give it."""

from __future__ import annotations

import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from medes import errors
from medes.client import MedesClient
from medes.types import SandboxState
from tests.support.cluster import AgentProcess, wait_until
from tests.support.docs_blocks import ROOT, code_blocks

pytestmark = pytest.mark.live


@pytest.fixture
def example() -> Any:
    (code,) = code_blocks("docs/integration.md", "python")
    module = types.ModuleType("runtime_example")
    exec(compile(code, "docs/integration.md", "exec"), module.__dict__)
    return module


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[AgentProcess]:
    agent = AgentProcess(tmp_path, "n0", "").start()
    yield agent
    agent.clean()


@pytest.fixture
def runtime(example: Any, agent: AgentProcess) -> Iterator[Any]:
    with MedesClient(agent.address, timeout_s=20.0) as medes:
        runtime = example.Runtime(medes)
        yield runtime
        for instance in runtime.idle:
            instance.end()


def test_it_serves_dedups_and_wakes(runtime: Any) -> None:
    assert runtime.invoke("12") == "144"
    (instance,) = runtime.idle
    runtime.medes.dedup(instance.sandbox_id)
    assert runtime.medes.get(instance.sandbox_id).state is SandboxState.DEDUP
    assert runtime.invoke("13") == "169"
    assert runtime.idle == [instance]
    sandbox = runtime.medes.get(instance.sandbox_id)
    assert sandbox.state in (SandboxState.WARM, SandboxState.RESTORING)
    assert sandbox.last_restore is not None and not sandbox.last_restore.demand_woken


def test_an_instance_that_died_or_was_purged_is_replaced(runtime: Any) -> None:
    runtime.invoke("1")
    (first,) = runtime.idle
    first.end()
    assert runtime.invoke("2") == "4"
    (second,) = runtime.idle
    assert second is not first
    runtime.medes.purge(second.sandbox_id)
    assert runtime.invoke("3") == "9"
    assert runtime.idle[0] is not second and second.process.poll() is not None


def test_it_serves_without_an_agent_and_with_the_next_one(runtime: Any, agent: AgentProcess) -> None:
    runtime.invoke("1")
    (instance,) = runtime.idle
    agent.kill()
    assert runtime.invoke("2") == "4"
    assert runtime.idle == [instance]
    agent.start()

    def known() -> bool:
        try:
            return runtime.medes.get(instance.sandbox_id).state is SandboxState.WARM
        except errors.AgentUnreachableError:  # the channel's next attempt is some hundred milliseconds away
            return False

    wait_until(known, "the agent knows it again")
    assert runtime.invoke("3") == "9"
    assert runtime.idle == [instance]


class Raises:
    """A client whose next begin() fails: the errors that nothing real gives on demand."""

    def __init__(self, medes: MedesClient, error: errors.MedesError) -> None:
        self._medes, self._error = medes, [error]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._medes, name)

    def begin(self, sandbox_id: str) -> Any:
        if self._error:
            raise self._error.pop()
        return self._medes.begin(sandbox_id)


@pytest.mark.parametrize(
    "kind", [errors.BusyError, errors.PeerUnreachableError, errors.DeadlineExceededError]
)
def test_one_that_cannot_wake_now_is_kept_for_later(runtime: Any, kind: type[errors.MedesError]) -> None:
    runtime.invoke("1")
    (first,) = runtime.idle
    runtime.medes = Raises(runtime.medes, kind("not now"))
    assert runtime.invoke("5") == "25"
    assert len(runtime.idle) == 2 and runtime.idle[0] is first
    assert first.process.poll() is None


def test_a_lost_one_is_ended(runtime: Any) -> None:
    runtime.invoke("1")
    (first,) = runtime.idle
    runtime.medes = Raises(runtime.medes, errors.LostError("a base is gone"))
    assert runtime.invoke("5") == "25"
    assert first.process.poll() is not None and first not in runtime.idle


def test_every_error_of_the_catalogue_is_spoken_of() -> None:
    """An error that begin() or dedup() may raise and that the page forgets would surprise its reader."""
    text = (ROOT / "docs" / "integration.md").read_text()
    elsewhere = {"invalid_argument", "already_exists", "controller_unreachable", "function"}
    elsewhere |= {
        "host_unreachable",
        "store_unreachable",
    }  # of the host's socket, and of the controller's start
    assert {code for code in errors.BY_CODE if f"`{code}`" not in text} == elsewhere
