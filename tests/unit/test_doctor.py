"""The doctor finds what is there by trying it, and never raises."""

from __future__ import annotations

import errno
import json
import os
from typing import Any

import pytest

from medes.cli.doctor import live_driver_works
from medes.cli.main import run
from medes.doctor import Check, examine, libraries, syscalls, tracing, userfault


def find(checks: list[Check], name: str) -> Check:
    return next(c for c in checks if c.name == name)


def test_every_finding_that_is_needed_and_missing_says_how_to_get_it() -> None:
    checks = examine()
    assert {"machine", "userfaultfd", "ptrace", "kernel", "rdma", "optional"} <= {c.group for c in checks}
    assert [c for c in checks if c.name == "probe"] == []
    assert [c for c in checks if not c.works and c.needed_for and not c.fix] == []


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert isinstance(document["live_driver"], bool)
    assert {"group", "name", "works", "detail", "fix", "needed_for"} == set(document["checks"][0])
    assert run(["doctor"]) == 0
    assert "userfaultfd" in capsys.readouterr().out


def test_a_refused_userfaultfd_is_reported_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, *arguments: int) -> int:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(syscalls, "call", refuse)
    checks = list(userfault.probe())
    check = find(checks, "system call")
    assert (check.works, check.detail) == (False, "Operation not permitted")
    assert "CAP_SYS_PTRACE" in check.fix
    assert not live_driver_works(checks)


def test_user_mode_only_is_not_taken_for_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    def user_mode(name: str, flags: int) -> int:
        if not flags & 1:
            raise OSError(errno.EPERM, "no")
        return os.open("/dev/null", os.O_RDONLY)

    monkeypatch.setattr(syscalls, "call", user_mode)
    checks = list(userfault.probe())
    assert not find(checks, "system call").works
    assert "not enough" in find(checks, "user mode only").detail
    assert not live_driver_works(checks)


def test_an_unknown_architecture_has_no_call_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syscalls, "ARCHITECTURE", "vax")
    with pytest.raises(OSError, match="vax"):
        syscalls.call("userfaultfd", 0)


def test_refused_ptrace_leaves_no_child(monkeypatch: pytest.MonkeyPatch) -> None:
    pids: list[int] = []

    def refuse(request: int, pid: int, address: int = 0, data: int = 0) -> int:
        pids.append(pid)
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(syscalls, "ptrace", refuse)
    check = find(list(tracing.probe()), "stop a process")
    assert (check.works, check.fix) == (False, tracing.FIX)
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


def test_missing_programs_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries.shutil, "which", lambda name: None)
    check = find(list(libraries.probe()), "runc")
    assert (check.works, check.fix) == (False, "apt-get install runc")


def test_a_probe_that_fails_becomes_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Any:
        raise RuntimeError("boom")

    monkeypatch.setattr(libraries, "probe", broken)
    check = find(examine(), "probe")
    assert (check.group, check.works) == ("libraries", False)
    assert "boom" in check.detail
