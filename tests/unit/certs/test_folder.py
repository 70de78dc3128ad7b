"""The cluster folder: made once, by whoever comes first; anybody else's hand in it is refused."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from medes.certs.folder import AUTHORITY_FILE, find_authority, load_authority, make_authority
from medes.errors import AlreadyExistsError, CorruptError, MedesError, NotFoundError, PermissionDeniedError

NOBODY = 65534


def test_many_at_once_make_one_ca(tmp_path: Path) -> None:
    found: list[str] = []
    gate = threading.Barrier(8)

    def start() -> None:
        gate.wait()
        found.append(find_authority(tmp_path / "deep" / "cluster").name)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and len(set(found)) == 1
    made = tmp_path / "deep" / "cluster"
    assert sorted(p.name for p in made.iterdir()) == ["authority.pem", "ca.crt"], "nothing is left over"
    assert {p.stat().st_mode & 0o777 for p in made.iterdir()} == {0o600}
    assert (made.stat().st_mode & 0o777, made.parent.stat().st_mode & 0o777) == (0o700, 0o700)


def test_a_ca_is_not_made_over_another(tmp_path: Path) -> None:
    made = make_authority(tmp_path / "c")
    with pytest.raises(AlreadyExistsError):
        make_authority(tmp_path / "c")
    assert load_authority(tmp_path / "c").name == made.name
    with pytest.raises(NotFoundError):
        load_authority(tmp_path / "none")


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")
@pytest.mark.parametrize(
    "how",
    ["owner", "mode", "link", "parent", "link on the way", "file link", "file mode", "file owner", "junk"],
)
def test_what_others_could_have_touched_is_refused(tmp_path: Path, how: str) -> None:
    """Made beforehand by an ordinary user, or open to one."""
    way = tmp_path / "way"
    way.mkdir()
    real = tmp_path / "real"
    make_authority(real)
    folder = way / "cluster"
    if how != "link":
        os.rename(real, folder)  # noqa: PTH104
    file = folder / AUTHORITY_FILE
    match how:
        case "owner":
            os.chown(folder, NOBODY, NOBODY)
        case "mode":
            folder.chmod(0o770)
        case "link":
            folder.symlink_to(real)
        case "parent":
            way.chmod(0o777)
        case "link on the way":  # in a folder where anybody may put one, though nobody may exchange it
            way.chmod(0o1777)
            (way / "put").symlink_to(way)
            folder = way / "put" / "cluster"
        case "file link":
            file.rename(tmp_path / "elsewhere")
            file.symlink_to(tmp_path / "elsewhere")
        case "file mode":
            file.chmod(0o644)
        case "file owner":
            os.chown(file, NOBODY, NOBODY)
        case "junk":
            file.write_bytes(b"-----BEGIN NOTHING")
    for use in (load_authority, find_authority):
        with pytest.raises(CorruptError if how == "junk" else MedesError) as error:
            use(folder)
        assert how == "junk" or isinstance(error.value, PermissionDeniedError) or "link" in how
    assert not list(folder.glob(".*")), "nothing was written"


def test_the_way_may_lead_through_sticky_folders(tmp_path: Path) -> None:
    """/tmp and /dev/shm: what lies there cannot be exchanged by others."""
    way = tmp_path / "tmp"
    way.mkdir()
    way.chmod(0o1777)
    assert find_authority(way / "mine" / "cluster").name
