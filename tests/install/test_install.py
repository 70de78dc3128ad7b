"""`make install` and `make uninstall` into a prefix of their own."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.install.conftest import ROOT, make


def tree(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir() or p.is_symlink()}


def places(root: Path) -> list[str]:
    return [f"PREFIX={root}/opt/medes", f"UNITDIR={root}/units", f"SYSCONFDIR={root}/etc"]


def test_installed_upgraded_and_uninstalled(tmp_path: Path, wheels: tuple[Path, Path]) -> None:
    said = make("install", *places(tmp_path))
    command = tmp_path / "opt" / "medes" / "bin" / "medes"
    version = subprocess.check_output(
        [command, "--version"], text=True, cwd="/", env={"PATH": "/usr/bin:/bin"}
    )
    assert version == "medes, version 0.1.0\n"
    assert str(command) in said
    unit = (tmp_path / "units" / "medes-agent.service").read_text()
    assert f"ExecStart={command} agent --config {tmp_path}/etc/medes/medes.toml\n" in unit
    settings = tmp_path / "etc" / "medes" / "medes.toml"
    assert settings.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "etc" / "medes" / "tls").stat().st_mode & 0o777 == 0o700

    # An upgrade leaves what the operator wrote.
    settings.write_text(settings.read_text() + "\n# mine\n")
    assert "left as they are" in make("install", *places(tmp_path))
    assert settings.read_text().endswith("# mine\n")
    assert [p.name for p in (tmp_path / "opt" / "medes" / "lib").iterdir()] == ["medes"]

    # Sandboxes that nobody could wake any more keep the agent installed.
    held = tmp_path / "shm" / "sandbox-held.medes"
    held.parent.mkdir()
    held.touch()
    settings.write_text(settings.read_text().replace("[agent]\n", f'[agent]\nshm_dir = "{held.parent}"\n'))
    refused = subprocess.run(
        ["make", "uninstall", *places(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert refused.returncode != 0
    assert str(held) in refused.stderr and "drain" in refused.stderr
    assert command.exists()

    held.unlink()
    said = make("uninstall", *places(tmp_path))
    assert tree(tmp_path) == {"etc/medes/medes.toml"}
    assert f"left: {tmp_path}/etc/medes" in said and "/var/lib/medes" in said

    # Settings that nobody changed go too.
    settings.write_bytes((ROOT / "deploy" / "medes.toml").read_bytes())
    make("uninstall", *places(tmp_path))
    assert tree(tmp_path) == set()


def test_a_staged_root_names_only_final_places(stage: Path) -> None:
    """Nothing in what a packager stages knows where it was staged."""
    home = stage / "usr" / "local" / "lib" / "medes"
    named = str(stage).encode()
    assert [p for p in home.rglob("*") if p.is_file() and named in p.read_bytes()] == []
    assert (home / "bin" / "medes").read_text().startswith("#!/usr/local/lib/medes/bin/python")


@pytest.mark.parametrize("setting", ["PREFIX=relative", "SYSCONFDIR=/with space"])
def test_places_that_units_cannot_name_are_refused(setting: str, wheels: tuple[Path, Path]) -> None:
    done = subprocess.run(["make", "install", setting], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode != 0
    assert "absolute paths without spaces" in done.stderr
