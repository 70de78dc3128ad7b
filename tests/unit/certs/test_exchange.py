"""The steps of a CA's exchange: each may be repeated, none may be left out."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from medes.certs import exchange
from medes.certs.authority import Authority, is_of
from medes.certs.files import issue_files, renew_files
from medes.certs.folder import CA_FILE, NEXT_FILE, load_authority, make_authority
from medes.certs.identity import IssuedIdentity
from medes.certs.parties import Party, Role
from medes.errors import BusyError, InvalidArgumentError, PermissionDeniedError, WrongStateError

N0 = Party(Role.NODE, "n0")


def test_step_by_step(tmp_path: Path) -> None:
    folder = tmp_path / "cluster"
    old = make_authority(folder)
    identity = IssuedIdentity(load_authority(folder), N0, folder=folder)
    assert not identity.refresh()
    coming = exchange.prepare(folder)
    assert exchange.prepare(folder).name == coming.name, "once"
    assert identity.refresh() and not identity.refresh()
    assert identity.pem.ca == old.certificate_pem + coming.certificate_pem
    assert is_of(identity.pem.certificate, b"", old.certificate_pem), "the old one signs"
    assert exchange.switch(folder, at_once=True).name == coming.name
    assert identity.refresh()
    assert is_of(identity.pem.certificate, b"", coming.certificate_pem)
    assert old.certificate_pem in identity.pem.ca, "and is believed"
    exchange.retire(folder, at_once=True)
    exchange.retire(folder)
    assert identity.refresh()
    assert identity.pem.ca == coming.certificate_pem
    assert sorted(p.name for p in folder.iterdir()) == ["authority.pem", "ca.crt"]


def test_no_step_is_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "cluster"
    make_authority(folder)
    with pytest.raises(WrongStateError, match="no next CA"):
        exchange.switch(folder, at_once=True)
    exchange.prepare(folder)
    with pytest.raises(WrongStateError, match="does not sign yet"):
        exchange.retire(folder, at_once=True)


def test_daemons_have_time_to_look(tmp_path: Path) -> None:
    folder = tmp_path / "cluster"
    make_authority(folder)
    exchange.prepare(folder)
    with pytest.raises(BusyError, match="wait"):
        exchange.switch(folder)
    long_ago_s = time.time() - exchange.LOOKED_S - 1
    os.utime(folder / CA_FILE, (long_ago_s, long_ago_s))
    exchange.switch(folder)
    with pytest.raises(BusyError, match="wait"):
        exchange.retire(folder)


def test_an_interrupted_prepare_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "cluster"
    old = make_authority(folder)
    coming = exchange.prepare(folder)
    (folder / CA_FILE).write_bytes(old.certificate_pem)  # as if it had ended between the two files
    with pytest.raises(WrongStateError, match="not believed yet"):
        exchange.switch(folder, at_once=True)
    assert exchange.prepare(folder).name == coming.name
    assert coming.certificate_pem in load_authority(folder).believed


def test_what_others_could_have_written_is_not_believed(tmp_path: Path) -> None:
    folder = tmp_path / "cluster"
    make_authority(folder)
    exchange.prepare(folder)
    (folder / NEXT_FILE).chmod(0o644)
    with pytest.raises(PermissionDeniedError, match="open to others"):
        exchange.switch(folder, at_once=True)
    (folder / NEXT_FILE).unlink()
    (folder / CA_FILE).chmod(0o666)
    with pytest.raises(PermissionDeniedError, match="open to others"):
        load_authority(folder)


def test_an_identity_goes_on_when_the_folder_is_no_use(tmp_path: Path) -> None:
    folder = tmp_path / "cluster"
    make_authority(folder)
    identity = IssuedIdentity(load_authority(folder), N0, folder=folder)
    before = identity.pem
    (folder / "authority.pem").write_bytes(b"nonsense")
    assert not identity.refresh() and identity.pem == before


def test_files_go_along(tmp_path: Path) -> None:
    folder, out = tmp_path / "cluster", tmp_path / "n0"
    old = make_authority(folder)
    written = issue_files(old, N0, (), days=1, folder=out)
    coming = exchange.prepare(folder)
    exchange.switch(folder, at_once=True)
    renew_files(load_authority(folder), written.certificate)
    assert written.ca.read_bytes() == old.certificate_pem + coming.certificate_pem
    assert is_of(written.certificate.read_bytes(), b"", coming.certificate_pem)
    stranger = issue_files(Authority.create(), N0, (), days=1, folder=tmp_path / "other")
    with pytest.raises(InvalidArgumentError, match="another CA"):
        renew_files(load_authority(folder), stranger.certificate)
    exchange.retire(folder, at_once=True)
    renew_files(load_authority(folder), written.certificate)
    assert written.ca.read_bytes() == coming.certificate_pem


def test_a_chain_is_followed_by_who_signed_and_by_nothing_else() -> None:
    old, new = Authority.create(), Authority.create()
    leaf, other = old.issue(N0, days=1), new.issue(N0, days=1)
    assert is_of(leaf.certificate, b"", new.certificate_pem + old.certificate_pem)
    assert not is_of(leaf.certificate, b"", new.certificate_pem)
    assert not is_of(leaf.certificate, other.certificate, new.certificate_pem), "somebody's else beside it"
    assert is_of(leaf.certificate, old.certificate_pem, old.certificate_pem)
    assert not is_of(b"", b"", new.certificate_pem)
