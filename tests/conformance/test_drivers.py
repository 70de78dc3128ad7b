"""What every driver holds, called directly and by a real agent; medes.drivers.driver and medes.drivers.subject say it in words.

A driver of one's own is held to it by a case of its own: see tests/conformance/driver_cases.py.
"""

from __future__ import annotations

import dataclasses
import json
import secrets
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from medes import native, plugins
from medes.agent.sandboxes.sandbox import SandboxSpec
from medes.client import MedesClient
from medes.config import AgentSettings
from medes.drivers.driver import Driver, Handle, Sleep
from medes.drivers.subject import Subject, Subjects
from medes.errors import (
    AlreadyExistsError,
    CancelledError,
    InvalidArgumentError,
    NotFoundError,
    ProcessGoneError,
)
from medes.plugins import Kind
from medes.types import Sandbox as View
from medes.types import SandboxState as S
from tests.conformance.driver_cases import DriverCase, Sandbox, cases, encoded
from tests.support.cluster import AgentProcess, wait_until
from tests.support.distribution import install

WAIT_S = 60.0
MakeSandbox = Callable[..., Sandbox]


@pytest.fixture(params=cases(), ids=lambda case: case.driver)
def case(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DriverCase:
    made: DriverCase = request.param()
    if made.module:
        modules = {f"throw_away_{made.driver}": made.module}
        points = f"[medes.drivers]\n{made.driver} = throw_away_{made.driver}:{made.driver.title()}Driver\n"
        install(tmp_path / "site", monkeypatch, modules, points)
    if lacks := plugins.load(Kind.DRIVER, made.driver).missing():
        pytest.skip(f"it cannot run here: {'; '.join(lacks)}")
    return made


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(f"/dev/shm/medes-test-{secrets.token_hex(6)}")
    path.mkdir(mode=0o700)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def make_sandbox(case: DriverCase, folder: Path) -> Iterator[MakeSandbox]:
    """make_sandbox(seed=1); all end with the test."""
    made: list[Sandbox] = []

    def make(seed: int = 1) -> Sandbox:
        made.append(case.sandbox(folder, seed))
        return made[-1]

    yield make
    for sandbox in made:
        sandbox.end()


@pytest.fixture
def driver(case: DriverCase) -> Iterator[Driver]:
    made: Driver = plugins.load(Kind.DRIVER, case.driver).make(AgentSettings(driver=case.driver))
    yield made
    made.close()
    made.close()  # repeatable


@pytest.fixture
def subjects(driver: Driver) -> Iterator[Subjects]:
    made = driver.subjects()
    yield made
    made.close()


def followed(subjects: Subjects, sandbox: Sandbox) -> Subject:
    subject = subjects.registered("s0", sandbox.asked)
    subjects.follow(subject)
    subjects.look([subject])
    return subject


def evicted(
    driver: Driver, subject: Subject, folder: Path
) -> tuple[Handle, native.SandboxFile, native.BaseSet]:
    image = driver.capture(subject, 1)
    file, bases = encoded(image, folder)
    return driver.evict(subject, image, file, bases), file, bases


def restored(handle: Handle) -> None:
    handle.restore(lazy=False)
    handle.restore(lazy=False)  # one that is under way goes on
    assert handle.wait_ready(WAIT_S)
    assert handle.wait_complete(WAIT_S)
    assert handle.state == "complete"


# --- its subjects ------------------------------------------------------------------------------------------
def test_a_subject_outlives_its_agent_as_json(subjects: Subjects, make_sandbox: MakeSandbox) -> None:
    sandbox = make_sandbox()
    subject = followed(subjects, sandbox)
    record = json.loads(json.dumps(subject.to_json()))
    assert not set(record) & {f.name for f in dataclasses.fields(SandboxSpec)}
    again = subjects.from_json("s0", {**record, "added_later": 1})
    assert (again.sandbox_id, again.parts, again.name) == ("s0", subject.parts, subject.name)
    assert again.processes == subject.processes
    assert json.loads(json.dumps(again.to_json())) == record
    assert not again.gone() and not again.ending()
    sandbox.end()
    assert again.gone() and again.ending()
    assert subjects.from_json("s0", record).gone()


def test_what_was_registered_once_has_the_same_parts_again_and_shares_none(
    subjects: Subjects, make_sandbox: MakeSandbox
) -> None:
    one, other = make_sandbox(1), make_sandbox(2)
    subject = followed(subjects, one)
    assert subject.parts and subject.parts == subjects.registered("s1", one.asked).parts
    assert not set(subject.parts) & set(subjects.registered("s2", other.asked).parts)


def test_a_look_tells_of_a_change_once(subjects: Subjects, make_sandbox: MakeSandbox) -> None:
    subject = followed(subjects, make_sandbox())
    told = {s.sandbox_id for s in subjects.look([subject])}
    before = subject.to_json()
    assert told <= {"s0"}
    assert subjects.look([subject]) == [] or subject.to_json() != before


def test_its_end_is_the_end_of_all_of_it(subjects: Subjects, make_sandbox: MakeSandbox) -> None:
    sandbox = make_sandbox()
    subject = followed(subjects, sandbox)
    assert subject.private_bytes() > 0
    subject.end(None, None)
    wait_until(lambda: not sandbox.alive() and subject.gone(), "its end")
    subject.end(None, None)  # nothing is left to be ended
    with pytest.raises(ProcessGoneError):
        subject.private_bytes()
    subjects.forget("s0")
    subjects.forget("s0")


# --- called directly ---------------------------------------------------------------------------------------
def test_a_capture_changes_nothing(
    driver: Driver, subjects: Subjects, make_sandbox: MakeSandbox, folder: Path
) -> None:
    sandbox = make_sandbox()
    subject = followed(subjects, sandbox)
    assert driver.capture(subject, 1).page_count > 0
    image = driver.capture(subject, None)
    file, _ = encoded(image, folder)
    del image
    assert subject.private_bytes() > 0
    assert not subject.pages_out(file)
    sandbox.check()


def test_pages_go_and_come_back_as_they_were(
    driver: Driver, subjects: Subjects, make_sandbox: MakeSandbox, folder: Path
) -> None:
    sandbox = make_sandbox()
    subject = followed(subjects, sandbox)
    for _ in range(2):  # the second op is of memory that was restored, and written to
        warm_bytes = subject.private_bytes()
        handle, file, _ = evicted(driver, subject, folder)
        assert (handle.state, handle.lost_code) == ("dormant", "ok")
        assert not handle.wait_complete(0.01)
        assert subject.pages_out(file) == driver.frees
        assert not driver.frees or subject.private_bytes() < warm_bytes / 2
        assert not subject.gone()
        restored(handle)
        assert not subject.pages_out(file)
        assert 0 < handle.stats()["pages_total"] <= file.page_count
        assert not handle.needed
        handle.detach()
        file.unlink()
        sandbox.check()
        sandbox.touch()
    sandbox.check()


def test_all_who_wait_hear_of_the_end(
    driver: Driver, subjects: Subjects, make_sandbox: MakeSandbox, folder: Path
) -> None:
    handle, _, _ = evicted(driver, followed(subjects, make_sandbox()), folder)
    heard: list[bool] = []
    threads = [
        threading.Thread(target=lambda wait=wait: heard.append(wait(WAIT_S)))
        for wait in (handle.wait_ready, handle.wait_complete, handle.wait_complete)
    ]
    for thread in threads:
        thread.start()
    handle.restore()
    for thread in threads:
        thread.join(WAIT_S)
    assert heard == [True] * 3


def test_an_op_that_was_cancelled_has_taken_nothing(
    driver: Driver, subjects: Subjects, make_sandbox: MakeSandbox, folder: Path
) -> None:
    sandbox = make_sandbox()
    subject = followed(subjects, sandbox)
    image = driver.capture(subject, 1)
    file, bases = encoded(image, folder)
    cancel = native.CancelFlag()
    cancel.cancel()
    with pytest.raises(CancelledError):
        driver.evict(subject, image, file, bases, cancel=cancel)
    assert not subject.pages_out(file)
    sandbox.check()


def test_who_lets_go_can_take_it_again(
    driver: Driver, subjects: Subjects, make_sandbox: MakeSandbox, folder: Path
) -> None:
    sandbox = make_sandbox()
    subject = followed(subjects, sandbox)
    handle, file, bases = evicted(driver, subject, folder)
    handle.detach()
    handle.detach()
    with pytest.raises(CancelledError):
        handle.wait_complete(WAIT_S)
    assert subject.pages_out(file) == driver.frees
    handle = driver.adopt(subject, file, bases, Sleep(touches_per_s_max=16))
    restored(handle)
    sandbox.check()


def test_what_has_ended_is_process_gone(
    driver: Driver, subjects: Subjects, make_sandbox: MakeSandbox, folder: Path
) -> None:
    sandbox = make_sandbox()
    subject = followed(subjects, sandbox)
    handle, file, _ = evicted(driver, subject, folder)
    handle.detach()
    sandbox.end()
    assert subject.gone() and not subject.needs(file)
    with pytest.raises(ProcessGoneError):
        driver.capture(subject, 1)
    driver.release_gone()


# --- by an agent -------------------------------------------------------------------------------------------
@pytest.fixture
def agent(case: DriverCase, tmp_path: Path) -> Iterator[AgentProcess]:
    made = AgentProcess(tmp_path, "n0", "", driver=case.driver)
    try:
        yield made.start()
    finally:
        made.clean()


def register(
    client: MedesClient, sandbox: Sandbox, sandbox_id: str = "s0", purge_kills: bool = False
) -> View:
    asked = sandbox.asked
    return client.register(
        "f",
        sandbox_id=sandbox_id,
        pids=asked.pids,
        cgroup=asked.cgroup,
        subject=asked.subject,
        purge_kills=purge_kills,
    )


def test_an_agent_dedups_and_restores_it(
    agent: AgentProcess, case: DriverCase, make_sandbox: MakeSandbox
) -> None:
    sandboxes = [make_sandbox(n) for n in range(2)]
    with agent.client() as client:
        for n, sandbox in enumerate(sandboxes):
            shown = register(client, sandbox, f"s{n}")
            assert (shown.driver, shown.subject) == (case.driver, sandbox.asked.subject)
            assert shown.warm_bytes > 0
        for _ in range(2):
            reports = [client.dedup(f"s{n}").report for n in range(2)]
            assert (
                reports[1].patch_bytes < reports[1].warm_bytes / 2
            )  # against the base that the first one made
            for n, sandbox in enumerate(sandboxes):
                assert client.get(f"s{n}").state is S.DEDUP
                assert client.restore(f"s{n}", eager=True).sandbox.state is S.WARM
                sandbox.check()
                sandbox.touch()


def test_the_same_again_changes_settings_and_another_name_is_refused(
    agent: AgentProcess, make_sandbox: MakeSandbox
) -> None:
    sandbox = make_sandbox()
    with agent.client() as client:
        register(client, sandbox)
        register(client, sandbox, purge_kills=True)
        with pytest.raises(AlreadyExistsError, match="belongs to sandbox s0"):
            register(client, sandbox, "s1")
        with pytest.raises(AlreadyExistsError):
            register(client, make_sandbox(2))
        other = {"pids": [agent.process.pid]} if sandbox.asked.subject else {"subject": "/vaults/1"}
        with pytest.raises(InvalidArgumentError):
            client.register("f", **other)
        client.purge("s0")
        wait_until(lambda: not sandbox.alive(), "its end")


def test_the_next_agent_takes_it_back(
    agent: AgentProcess, case: DriverCase, make_sandbox: MakeSandbox
) -> None:
    sandbox, warm = make_sandbox(), make_sandbox(2)
    with agent.client() as client:
        register(client, sandbox, purge_kills=True)
        register(client, warm, "s1")
        client.dedup("s0")
        before = client.get("s0")
    agent.kill()
    agent.start()
    with agent.client() as client:
        state = S.DEDUP if case.survives else S.WARM
        found = wait_until(lambda: client.get("s0").state is state and client.get("s0"), "taken back")
        assert (found.pids, found.subject, found.driver) == (before.pids, before.subject, case.driver)
        assert client.get("s1").state is S.WARM
        client.restore("s0", eager=True)
        sandbox.check()
        warm.check()
        client.dedup("s0")
        client.purge("s0")
        wait_until(lambda: not sandbox.alive(), "its end")
        assert agent.shm_files("sandbox-") == []


def test_one_that_is_only_forgotten_has_its_pages(agent: AgentProcess, make_sandbox: MakeSandbox) -> None:
    sandbox = make_sandbox()
    with agent.client() as client:
        register(client, sandbox)
        client.dedup("s0")
        client.purge("s0")
        with pytest.raises(NotFoundError):
            client.get("s0")
    sandbox.check()
    assert agent.shm_files("sandbox-") == []


@pytest.mark.parametrize("dedupd", [False, True], ids=["warm", "dedup'd"])
def test_one_that_has_ended_is_forgotten(
    agent: AgentProcess, make_sandbox: MakeSandbox, dedupd: bool
) -> None:
    sandbox = make_sandbox()
    with agent.client() as client:
        register(client, sandbox)
        if dedupd:
            client.dedup("s0")
        sandbox.end()
        wait_until(lambda: client.list() == [], "forgotten")
    assert agent.shm_files("sandbox-") == []


def test_one_that_ended_without_an_agent_is_forgotten(agent: AgentProcess, make_sandbox: MakeSandbox) -> None:
    sandbox = make_sandbox()
    with agent.client() as client:
        register(client, sandbox)
        client.dedup("s0")
    agent.kill()
    sandbox.end()
    agent.start()
    with agent.client() as client:
        wait_until(lambda: client.list() == [], "forgotten")
    assert agent.shm_files("sandbox-") == []
