"""Identities stay fresh: issued ones renew themselves, files are taken over when they fit together, and not before."""

from __future__ import annotations

import logging
import os
import shutil
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from medes.certs.authority import Authority as Signer
from medes.certs.authority import details
from medes.certs.files import renew_files
from medes.certs.identity import ExpiryWatch, FileIdentity, IssuedIdentity
from medes.certs.parties import Party, Role
from medes.cli.main import cli
from tests.support.certificates import Authority

DAY_S = 86400.0


def test_an_issued_certificate_is_renewed_in_time() -> None:
    now = [0.0]
    signer = Signer.create()
    start_s = signer.expires_s - 100 * DAY_S
    identity = IssuedIdentity(signer, Party(Role.NODE, "n0"), days=8, now_s=lambda: start_s + now[0])
    first = identity.pem
    now[0] = 3.9 * DAY_S
    assert not identity.refresh()
    now[0] = 4.1 * DAY_S
    assert identity.refresh() and identity.generation == 1
    assert identity.pem.private_key != first.private_key
    assert identity.expires_s == pytest.approx(start_s + 12.1 * DAY_S)
    assert not identity.refresh()


def test_files_are_taken_over_when_they_fit_together(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ca = Authority(tmp_path)
    files = ca.issue("n0")
    identity = FileIdentity(files)
    first = identity.pem
    assert not identity.refresh()
    other = ca.pem("n0")
    key, certificate = Path(files.private_key), Path(files.certificate)
    key.write_bytes(other.private_key)
    assert not identity.refresh() and identity.pem == first, "a key without its certificate is not used"
    assert not identity.refresh()
    assert len([r for r in caplog.records if "not used" in r.message]) == 1, "said once"
    certificate.write_bytes(other.certificate)
    assert identity.refresh() and identity.pem.private_key == other.private_key
    certificate.unlink()
    assert not identity.refresh() and identity.pem.private_key == other.private_key
    assert identity.generation == 1


def test_a_renewed_certificate_says_the_same(tmp_path: Path) -> None:
    ca = Authority(tmp_path)
    files = ca.issue("n0", days=30, domains="a,b")
    before = details(Path(files.certificate).read_bytes(), "x")
    identity = FileIdentity(files)
    for _ in range(2):
        _, after = renew_files(ca.authority, Path(files.certificate))
        assert (after.party, after.names, after.issuer) == (before.party, before.names, before.issuer)
        assert after.days == pytest.approx(30, abs=0.01)
        assert identity.refresh()
    assert os.stat(files.private_key).st_mode & 0o777 == 0o600  # noqa: PTH116


def test_a_clock_that_was_set_back_has_certificates_issued_anew() -> None:
    """They would be good from the time of their issue on, which is days away again."""
    now = [10 * DAY_S]
    signer = Signer.create()
    start_s = signer.expires_s - 100 * DAY_S
    identity = IssuedIdentity(signer, Party(Role.NODE, "n0"), days=8, now_s=lambda: start_s + now[0])
    now[0] -= 600.0
    assert not identity.refresh()
    now[0] = 7 * DAY_S
    assert identity.refresh()
    assert not identity.refresh()
    assert identity.expires_s == pytest.approx(start_s + 15 * DAY_S)
    issued, now_s = details(signer.certificate_pem, "CA"), time.time()
    assert issued.begins_s < now_s - 300 * DAY_S  # the CA is good by that clock, too


@pytest.mark.parametrize(("days", "level"), [(20.0, None), (13.0, logging.WARNING), (-0.01, logging.ERROR)])
def test_expiry_is_said_once_a_day_from_two_weeks_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, days: float, level: int | None
) -> None:
    identity = FileIdentity(Authority(tmp_path).issue("n0", days=days))
    watch = ExpiryWatch()
    for _ in range(3):
        watch.look(identity)
    assert [r.levelno for r in caplog.records] == ([] if level is None else [level])


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["certs", *arguments])


def test_the_command(tmp_path: Path) -> None:
    ca, out = str(tmp_path / "ca"), tmp_path / "out"
    assert run("init", "--cluster-dir", ca).exit_code == 0
    issued = run(
        "issue", "n0", "--cluster-dir", ca, "--out", str(out), "--host", "10.0.0.1", "--domains", "a, b"
    )
    assert issued.output.startswith("node n0 (a, b): ")
    assert sorted(p.name for p in out.iterdir()) == ["ca.crt", "n0.crt", "n0.key"]
    assert "already_exists" in str(
        type(run("issue", "n0", "--cluster-dir", ca, "--out", str(out)).exception).code
    )
    shown = run("show", str(out / "n0.crt"), "--json").output
    assert '"domains": [\n      "a",\n      "b"\n    ]' in shown and '"n0.node.medes"' in shown
    old = (out / "n0.crt").read_bytes()
    assert run("renew", str(out / "n0.crt"), "--cluster-dir", ca).exit_code == 0
    assert (out / "n0.crt").read_bytes() != old
    shutil.rmtree(ca)
    assert run("init", "--cluster-dir", ca).exit_code == 0
    assert "another CA" in str(run("renew", str(out / "n0.crt"), "--cluster-dir", ca).exception)
