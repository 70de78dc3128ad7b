"""What `medes doctor` says of certificates: trouble before it comes, and a laboratory's setting where it stands."""

from __future__ import annotations

from pathlib import Path

import pytest

from medes.certs.folder import VARIABLE, make_authority
from medes.doctor import certificates
from medes.doctor.check import Check
from tests.support.certificates import Authority


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(certificates, "SETTINGS", tmp_path / "medes.toml")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cluster"))
    return tmp_path / "medes.toml"


def found(name: str) -> list[Check]:
    return [c for c in certificates.probe() if c.name == name]


def test_a_machine_without_settings(settings: Path) -> None:
    assert [c.works for c in certificates.probe()] == [True]
    folder = settings.parent / "cluster"
    name = make_authority(folder).name
    (check,) = found("cluster folder")
    assert check.works and name in check.detail
    folder.chmod(0o755)
    (check,) = found("cluster folder")
    assert not check.works and "open to others" in check.detail


@pytest.mark.parametrize(("days", "works"), [(60.0, True), (10.0, False), (-0.01, False)])
def test_files(settings: Path, tmp_path: Path, days: float, works: bool) -> None:
    files = Authority(tmp_path / "c").issue("n0", days=days)
    settings.write_text(
        f'[agent.tls]\ncertificate = "{files.certificate}"\nprivate_key = "{files.private_key}"\nca = "{files.ca}"\n'
    )
    (check,) = found("agent TLS")
    assert check.works == works and "node n0" in check.detail
    Path(files.private_key).unlink()
    (check,) = found("agent TLS")
    assert not check.works


def test_plaintext_is_shouted(settings: Path) -> None:
    settings.write_text("[agent]\ninsecure_plaintext = true\n[controller]\ninsecure_plaintext = true\n")
    for section in ("agent", "controller"):
        (check,) = found(f"{section} TLS")
        assert not check.works and check.needed_for and "INSECURE" in check.detail
