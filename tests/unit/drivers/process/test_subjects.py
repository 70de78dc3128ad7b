"""Sandboxes that are processes, as the journals of agents before subjects have them, and beside each other."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from medes.agent.sandboxes.sandbox import SandboxSpec, to_record
from medes.drivers.image import ImageDriver
from medes.drivers.live import LiveDriver
from medes.drivers.process.processes import start_time
from medes.drivers.process.subjects import ProcessSubjects
from medes.drivers.registry import Drivers
from medes.drivers.subject import Asked, UnknownSubjects
from medes.errors import AlreadyExistsError, InvalidArgumentError, ProcessGoneError, UnsupportedError
from tests.support.counter_app import App

MakeApp = Callable[..., App]
# A journal's record of before there were subjects.
OLD = {
    "sandbox_id": "s0",
    "function": "f",
    "tenant": "t",
    "domain": "t",
    "pids": [5, 6],
    "start_times": [50, 60],
    "cgroup": "",
    "lifecycle": {"idle_period_ms": 9},
    "driver": "live",
    "hook_address": "",
    "purge_kills": True,
    "others": [[7, 70]],
    "seen": [3, 4],
}


@pytest.fixture
def subjects() -> Iterator[ProcessSubjects]:
    made = ProcessSubjects()
    yield made
    made.close()


def test_journals_of_older_agents_are_read_and_written_alike(subjects: ProcessSubjects) -> None:
    spec, subject = SandboxSpec.from_json(OLD), subjects.from_json("s0", OLD)
    assert subject.all_known() == [(5, 50), (6, 60), (7, 70)]
    assert subject.seen() == (3, 4)
    written = json.loads(json.dumps(to_record(spec, subject)))
    assert written.keys() == OLD.keys()
    assert {k: v for k, v in written.items() if k != "lifecycle"} == {
        k: v for k, v in OLD.items() if k != "lifecycle"
    }


def test_a_record_of_older_agents_still_may_lack_what_looks_told(subjects: ProcessSubjects) -> None:
    subject = subjects.from_json("s0", {"pids": [5], "start_times": [50]})
    assert (subject.all_known(), subject.seen(), subject.cgroup) == ([(5, 50)], (0,), "")
    with pytest.raises(ValueError, match="1 pids with 0 start times"):
        subjects.from_json("s0", {"pids": [5]})


def test_drivers_with_the_same_class_share_their_subjects() -> None:
    drivers = Drivers({"image": ImageDriver()}, {"live": {"live driver": "in a test"}})
    assert LiveDriver.subjects is ImageDriver.subjects
    assert drivers.subjects_of("live") is drivers.subjects_of("image")
    assert isinstance(drivers.subjects_of("nobody"), UnknownSubjects)


def test_what_nobody_knows_is_kept_as_it_is() -> None:
    record = {"sandbox_id": "s0", "vault": "/v", "pids": []}
    subject = UnknownSubjects().from_json("s0", record)
    assert subject.to_json() == record
    assert not subject.gone() and subject.pages_out(None)
    with pytest.raises(UnsupportedError):
        subject.end(None, None)


def test_a_sandbox_ends_where_another_one_begins(subjects: ProcessSubjects, make_app: MakeApp) -> None:
    """Its root is a child of the other's, as a function's is of its host."""
    inner = make_app()
    outer = subjects.from_json("outer", {"pids": [inner.pid], "start_times": [start_time(inner.pid)]})
    subjects.follow(outer)
    assert outer.members() == [inner.pid]
    own = subjects.registered("inner", Asked(pids=(inner.pid,)))
    subjects.follow(own)
    with pytest.raises(ProcessGoneError, match="belongs to other sandboxes"):
        outer.members()
    with pytest.raises(AlreadyExistsError, match="somebody's sandbox"):
        subjects.admit(0, Asked(pids=(inner.pid,)), [])
    assert subjects.admit(0, Asked(pids=(inner.pid,)), [outer, own]) > 0
    subjects.forget("inner")
    assert outer.members() == [inner.pid]


def test_processes_have_no_other_name(subjects: ProcessSubjects) -> None:
    for refuse in (
        lambda asked: subjects.registered("s0", asked),
        lambda asked: subjects.admit(1000, asked, []),
    ):
        with pytest.raises(InvalidArgumentError, match="are processes"):
            refuse(Asked(subject="vm-17"))
