"""What the host does for every contract, shown with one that misbehaves as it is told."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from medes import plugins
from medes.errors import DeadlineExceededError, FunctionError, InvalidArgumentError, UnsupportedError
from medes.plugins import Kind
from medes.runtimes import manifest
from medes.runtimes.contracts.contract import Answer, Command, Contract, Instance, InstanceFailedError, Ready
from medes.runtimes.host import hosted_instance
from medes.runtimes.host.host import FunctionHost
from medes.runtimes.host.hosted_instance import HostedInstance


class Odd(Contract):
    @classmethod
    def check(cls, spec: manifest.FunctionSpec) -> None:
        pass

    @classmethod
    def open(cls, spec: manifest.FunctionSpec, instance_id: str, folder: Path) -> Instance:
        assert list(folder.iterdir()) == []
        (folder / "left").write_text("behind")
        return OddInstance(spec.handler)


class Absent(Odd):
    @classmethod
    def missing(cls) -> dict[str, str]:
        return {"a hall": "build one"}


class OddInstance(Instance):
    """A process that waits; whose answers come from here."""

    def __init__(self, how: str) -> None:
        self._how = how

    async def launch(self) -> Command:
        if self._how == "launch":
            raise KeyError("launch")
        code = "print('last words', flush=True)" if self._how == "end" else "import time; time.sleep(600)"
        return Command((sys.executable, "-c", code))

    async def ready(self) -> Ready:
        if self._how == "ready":
            raise KeyError("ready")
        if self._how in ("end", "slow"):
            await asyncio.sleep(600)
        return Ready()

    async def invoke(self, event: Any, request_id: str, timeout_s: float) -> Answer:
        if event == "wait":
            await asyncio.sleep(600)
        if event == "own timeout":
            raise TimeoutError("mine")
        if event == "bad":
            raise InvalidArgumentError("no event")
        if event == "bug":
            raise KeyError("bug")
        return Answer(event)

    def close(self) -> None:
        raise OSError("cannot close")


def spec_of(folder: Path, handler: str = "fine", contract: str = "odd") -> manifest.FunctionSpec:
    return manifest.FunctionSpec("odd", handler, folder, {}, False, contract=contract)


@pytest.fixture(autouse=True)
def offered(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, kind in (("odd", Odd), ("absent", Absent)):
        monkeypatch.setitem(plugins.OWN[Kind.FUNCTION_CONTRACT], name, f"{__name__}:{kind.__name__}")


@pytest.fixture
def ended() -> list[HostedInstance]:
    return []


@pytest.fixture
async def instance(tmp_path: Path, ended: list[HostedInstance]) -> AsyncIterator[HostedInstance]:
    made = HostedInstance(spec_of(tmp_path), "odd-1", "n0")
    await made.start(tmp_path / "log", tmp_path / "own", ended.append)
    yield made
    made.kill()
    made.kill()
    assert not (tmp_path / "own").exists()
    assert not Path(f"/proc/{made.pid}").exists()


@pytest.mark.parametrize(
    ("how", "kind", "complaint"),
    [
        ("launch", InstanceFailedError, "odd contract failed: KeyError: 'launch'"),
        ("ready", InstanceFailedError, "odd contract failed: KeyError: 'ready'"),
        ("end", FunctionError, r"ended while it loaded \(last words\)"),
        ("slow", DeadlineExceededError, "did not load within 0.5 s"),
    ],
)
async def test_one_that_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, kind: type[Exception], complaint: str
) -> None:
    monkeypatch.setattr(hosted_instance, "LAST_WORDS_S", 0.01)
    if how == "slow":
        monkeypatch.setattr(hosted_instance, "LOAD_TIMEOUT_S", 0.5)
    made = HostedInstance(spec_of(tmp_path, how), "odd-1", "n0")
    with pytest.raises(kind, match=complaint):
        await made.start(tmp_path / "log", tmp_path / "own", lambda _: None)
    assert made.exited and not (tmp_path / "own").exists()


async def test_an_event_that_was_refused_leaves_the_instance(instance: HostedInstance) -> None:
    with pytest.raises(InvalidArgumentError, match="no event"):
        await instance.invoke("bad", "1", 10)
    assert (await instance.invoke("good", "2", 10))[0] == "good"
    assert await instance.run_hooks("after_restore") == 0  # those of a contract without hooks


@pytest.mark.parametrize(("event", "complaint"), [("bug", "KeyError: 'bug'"), ("own timeout", "mine")])
async def test_what_no_contract_may_raise_ends_the_instance(
    instance: HostedInstance, event: str, complaint: str
) -> None:
    with pytest.raises(InstanceFailedError, match=complaint) as caught:
        await instance.invoke(event, "1", 10)
    assert caught.value.begun and instance.exited
    with pytest.raises(InstanceFailedError) as caught:
        await instance.invoke("good", "2", 10)
    assert not caught.value.begun


async def test_the_end_of_the_process_ends_a_call_that_does_not_see_it(
    instance: HostedInstance, ended: list[HostedInstance], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosted_instance, "LAST_WORDS_S", 0.01)
    waiting = asyncio.create_task(instance.invoke("wait", "1", 600))
    await asyncio.sleep(0)
    assert instance._spawned is not None
    instance._spawned.process.kill()
    with pytest.raises(InstanceFailedError, match="the instance ended") as caught:
        await waiting
    assert caught.value.begun and ended == [instance]


async def test_the_time_limit_and_a_cancelled_call_end_it(instance: HostedInstance, tmp_path: Path) -> None:
    with pytest.raises(DeadlineExceededError, match=r"within 0\.05 s"):
        await instance.invoke("wait", "1", 0.05)
    assert instance.exited
    other = HostedInstance(spec_of(tmp_path), "odd-2", "n0")
    await other.start(None, tmp_path / "other", lambda _: None)
    waiting = asyncio.create_task(other.invoke("wait", "1", 600))
    await asyncio.sleep(0.05)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert other.exited


async def test_what_a_machine_lacks_is_said_at_deploy(tmp_path: Path) -> None:
    host = FunctionHost(["unix:/nowhere"], tmp_path)
    with pytest.raises(UnsupportedError, match=r"'absent' cannot run here: a hall \(build one\)"):
        await host.deploy(spec_of(tmp_path, contract="absent"))
    assert host.functions == {}
