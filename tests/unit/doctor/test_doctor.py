"""The doctor finds what is there by trying it, and never raises."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from medes import native
from medes.bench import criu_program
from medes.cli.doctor import live_driver_works
from medes.cli.main import run
from medes.doctor import Check, examine, libraries, syscalls, tracing, userfault
from medes.errors import UnsupportedError


def find(checks: list[Check], name: str) -> Check:
    return next(c for c in checks if c.name == name)


def test_every_finding_that_is_needed_and_missing_says_how_to_get_it() -> None:
    checks = examine()
    assert {"machine", "userfaultfd", "ptrace", "kernel", "rdma", "optional"} <= {c.group for c in checks}
    assert [c for c in checks if c.name == "probe"] == []
    assert [c for c in checks if not c.works and c.needed_for and not c.fix] == []


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    code = run(["doctor", "--json"])
    document = json.loads(capsys.readouterr().out)
    assert code == (0 if document["live_driver"] else UnsupportedError.exit_code)
    assert {"group", "name", "works", "detail", "fix", "needed_for"} == set(document["checks"][0])
    assert run(["doctor"]) == code
    assert "userfaultfd" in capsys.readouterr().out


def test_where_nothing_can_be_deduplicated_it_ends_with_an_error_and_says_why(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "probe_live", lambda: {"userfaultfd is refused": "grant CAP_SYS_PTRACE"})
    assert run(["doctor"]) == UnsupportedError.exit_code
    last = capsys.readouterr().out.rpartition("cannot be deduplicated here")[2]
    assert "userfaultfd is refused" in last and "grant CAP_SYS_PTRACE" in last
    assert run(["doctor", "--json"]) == UnsupportedError.exit_code
    assert json.loads(capsys.readouterr().out)["live_driver"] is False


def test_a_refused_userfaultfd_is_reported_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, *arguments: int) -> int:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(syscalls, "call", refuse)
    checks = list(userfault.probe())
    check = find(checks, "system call")
    assert (check.works, check.detail) == (False, "Operation not permitted")
    assert "CAP_SYS_PTRACE" in check.fix


def test_user_mode_only_is_not_taken_for_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    def user_mode(name: str, flags: int) -> int:
        if not flags & 1:
            raise OSError(errno.EPERM, "no")
        return os.open("/dev/null", os.O_RDONLY)

    monkeypatch.setattr(syscalls, "call", user_mode)
    checks = list(userfault.probe())
    assert not find(checks, "system call").works
    user_mode_only = find(checks, "user mode only")
    assert (user_mode_only.works, "not enough" in user_mode_only.detail) == (False, True)


@pytest.mark.parametrize("missing", [{}, {"ptrace: no": "CAP_SYS_PTRACE"}])
def test_the_verdict_is_the_live_drivers_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], missing: dict[str, str]
) -> None:
    """Whatever the other checks found: another way than the one they tried may serve."""

    def refuse(name: str, *arguments: int) -> int:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(syscalls, "call", refuse)
    monkeypatch.setattr(native, "probe_live", lambda: missing)
    checks = examine()
    assert not find(checks, "system call").works
    assert live_driver_works(checks) == (not missing)
    assert run(["doctor"]) == (UnsupportedError.exit_code if missing else 0)
    out = capsys.readouterr().out
    assert ("Running processes can be deduplicated here" in out) == (not missing)


def test_without_the_native_core_nothing_runs() -> None:
    assert not live_driver_works([Check("machine", "native core", False, "does not load")])
    assert not live_driver_works([])


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


def fake_criu(path: Path, version: str) -> Path:
    path.write_text(f"#!/bin/sh\necho 'Version: {version}'\n")
    path.chmod(0o755)
    return path


def test_the_criu_that_the_fix_builds_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By the doctor and by the benchmark alike; an older one is not taken."""
    old, built = fake_criu(tmp_path / "criu", "3.17.1"), tmp_path / "built"
    monkeypatch.delenv("MEDES_CRIU", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(criu_program, "BUILT", built)
    if not Path("/usr/sbin/criu").exists():
        check = find(list(libraries.probe()), "criu")
        assert (check.works, check.fix) == (False, criu_program.FIX)
        assert f"{old} is 3.17" in check.detail
    fake_criu(built, "4.2")
    assert find(list(libraries.probe()), "criu").detail == f"{built}, version 4.2"
    named = fake_criu(tmp_path / "named", "5.0")
    monkeypatch.setenv("MEDES_CRIU", str(named))
    assert find(list(libraries.probe()), "criu").detail == f"{named}, version 5.0"
    assert criu_program.find_criu() == (str(named), "5.0")


def test_a_probe_that_fails_becomes_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Any:
        raise RuntimeError("boom")

    monkeypatch.setattr(libraries, "probe", broken)
    check = find(examine(), "probe")
    assert (check.group, check.works) == ("libraries", False)
    assert "boom" in check.detail
