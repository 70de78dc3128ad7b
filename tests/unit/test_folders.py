"""Folders that others could have made, changed or replaced are refused, whatever the combination; what is accepted
withstands a real other user."""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from medes import native
from medes.errors import CorruptError, IoError, MedesError, PermissionDeniedError
from medes.folders import (
    free_name,
    make_private_folder,
    make_socket_folder,
    open_private,
    read_private,
    write_private,
)

NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="makes folders of other users: needs root")


@pytest.fixture
def top() -> Iterator[Path]:
    """Where another user gets to: pytest's own folders are closed to them."""
    with tempfile.TemporaryDirectory(prefix="medes-folders-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def attack(parent: Path, folder: Path) -> list[str]:
    """What another user manages to do to a folder: in a process of theirs."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        done = []
        for what, act in (
            ("look", lambda: list(folder.iterdir())),
            ("put", lambda: (folder / "sandbox-x.medes").touch()),
            ("replace", lambda: folder.rename(parent / "away")),
            ("remove", lambda: folder.rmdir()),
        ):
            with contextlib.suppress(OSError):
                act()
                done.append(what)
        os.write(write, ",".join(done).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        found = pipe.read()
    os.waitpid(pid, 0)
    return [what for what in found.split(",") if what]


@needs_root
def test_every_owner_and_mode_of_a_folder_and_its_parent(top: Path) -> None:
    """Accepted is exactly what a real other user can do nothing to."""
    modes = [*range(0o700, 0o1000, 1), 0o1700, 0o1777, 0o2700, 0o500, 0o000]
    parent, folder = top / "parent", top / "parent" / "store"
    parent.mkdir()
    accepted = refused = 0
    cases = [
        *itertools.product((0, NOBODY), modes, (0,), (0o755,)),
        *itertools.product((0,), (0o700,), (0, NOBODY), [*range(0o700, 0o1000), 0o1777, 0o1755, 0o1770]),
    ]
    for owner, mode, parent_owner, parent_mode in cases:
        folder.mkdir(exist_ok=True)
        (folder / "something").touch()
        os.chown(folder, owner, 0)
        folder.chmod(mode)
        os.chown(parent, parent_owner, 0)
        parent.chmod(parent_mode)
        try:
            make_private_folder(folder)
        except PermissionDeniedError as error:
            refused += 1
            assert error.object in (str(folder), str(parent)) and error.hint, error
            continue
        accepted += 1
        # The masks that matter, said once more and in another way; groups count as others.
        assert owner == 0 and mode & 0o077 == 0 and parent_owner == 0, (owner, mode, parent_owner)
        assert parent_mode & stat.S_ISVTX or not parent_mode & 0o022, oct(parent_mode)
        if parent_mode & 0o002 or parent_mode == 0o755:
            assert attack(parent, folder) == [], (oct(mode), oct(parent_mode))
    assert accepted > 10 and refused > 150


@needs_root
@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("owner", [0, NOBODY])
@pytest.mark.parametrize("open_parent", [False, True])
def test_links_are_followed_only_where_root_alone_could_have_put_them(
    top: Path, depth: int, owner: int, open_parent: bool
) -> None:
    real = top / "real" / "a" / "b"
    real.mkdir(parents=True, mode=0o755)
    parts = [top / "real", top / "real" / "a", real]
    link = top / "links"
    link.mkdir()
    link.chmod(0o1777 if open_parent else 0o755)
    (link / "here").symlink_to(parts[depth])
    os.chown(link / "here", owner, owner, follow_symlinks=False)
    path = (link / "here").joinpath(*["a", "b", "store"][depth:])
    if open_parent:
        with pytest.raises(PermissionDeniedError, match="symbolic link"):
            make_private_folder(path)
        assert not (real / "store").exists()
    else:  # root's own link, or one that root gave away: nobody else can put one there
        made: list[Path] = []
        make_private_folder(path, made)
        assert [p.resolve() for p in made] == [real / "store"]


def test_what_is_missing_is_made(top: Path) -> None:
    made: list[Path] = []
    make_private_folder(top / "a" / "store", made)
    assert made == [top / "a", top / "a" / "store"]
    assert stat.S_IMODE(made[0].stat().st_mode) == 0o755
    assert stat.S_IMODE(made[1].stat().st_mode) == 0o700
    previous = os.umask(0o777)
    try:
        make_private_folder(top / "masked")
    finally:
        os.umask(previous)
    assert stat.S_IMODE((top / "masked").stat().st_mode) == 0o700


def test_an_empty_folder_of_ours_is_closed_and_one_with_files_is_refused(top: Path) -> None:
    folder = top / "store"
    folder.mkdir(mode=0o755)
    make_private_folder(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.chmod(0o755)
    (folder / "journal").touch()
    with pytest.raises(PermissionDeniedError, match="others may look into it"):
        make_private_folder(folder)
    (folder / "journal").unlink()
    folder.chmod(0o757)  # what was put there may be gone again for a moment
    with pytest.raises(PermissionDeniedError, match="others may write into it"):
        make_private_folder(folder)


def test_no_folder_at_all(top: Path) -> None:
    (top / "file").touch()
    for path in (top / "file", top / "file" / "store"):
        with pytest.raises(IoError, match="not a folder"):
            make_private_folder(path)
    (top / "loop").symlink_to(top / "loop")
    with pytest.raises(IoError, match="too many symbolic links"):
        make_private_folder(top / "loop")
    with pytest.raises(IoError, match="absolute"):
        make_private_folder(Path("store"))


def test_links_with_dots_lead_where_they_lead(top: Path) -> None:
    (top / "x" / "y").mkdir(parents=True)
    (top / "link").symlink_to("x/y/../../z")
    make_private_folder(top / "link")
    assert (top / "z").is_dir()


@needs_root
def test_a_socket_folder_may_be_sticky_and_nothing_looser(top: Path) -> None:
    folder = top / "run"
    folder.mkdir()
    for owner, mode, good in (
        (0, 0o755, True),
        (0, 0o1777, True),
        (0, 0o777, False),
        (0, 0o775, False),
        (NOBODY, 0o755, False),
        (NOBODY, 0o1777, False),
    ):
        os.chown(folder, owner, 0)
        folder.chmod(mode)
        if good:
            make_socket_folder(folder)
        else:
            with pytest.raises(PermissionDeniedError, match="replace what lies in it"):
                make_socket_folder(folder)


@needs_root
def test_only_this_users_regular_files_are_opened(top: Path) -> None:
    folder = top / "store"
    make_private_folder(folder)
    good, other = folder / "journal", top / "other"
    write_private(good, b"x")
    other.write_bytes(b"not ours")
    assert read_private(good, 10) == b"x" and stat.S_IMODE(good.stat().st_mode) == 0o600
    with pytest.raises(CorruptError, match="longer than 0"):
        read_private(good, 0)
    (folder / "link").symlink_to(other)
    os.mkfifo(folder / "pipe")
    (folder / "theirs").touch()
    os.chown(folder / "theirs", NOBODY, NOBODY)
    (folder / "open").touch()
    (folder / "open").chmod(0o620)
    for name, kind, text in (
        ("link", PermissionDeniedError, "symbolic link"),
        ("pipe", CorruptError, "not a regular file"),
        ("theirs", PermissionDeniedError, "belongs to"),
        ("open", PermissionDeniedError, "others may write"),
        ("absent", MedesError, "does not exist"),
    ):
        with pytest.raises(kind, match=text):
            open_private(folder / name, os.O_RDONLY)
    with pytest.raises(PermissionDeniedError, match="symbolic link"):
        open_private(folder / "link", os.O_RDWR | os.O_CREAT)
    folder.chmod(0o770)  # since it was looked at
    with pytest.raises(PermissionDeniedError, match="others may write into it"):
        read_private(good, 10)
    assert other.read_bytes() == b"not ours"


@needs_root
@pytest.mark.parametrize("how", ["mode", "owner", "file", "link"])
def test_the_core_opens_nothing_that_others_could_have_put(top: Path, how: str) -> None:
    """At each open, whatever was found at start: the folder, or the file, changed hands since."""
    folder = top / "store"
    make_private_folder(folder)
    path, aside = folder / "base-1.slab", top / "aside"
    image = native.MemoryImage.from_buffer(bytes(range(256)) * 16)
    native.Slab.create(str(path), 1, image)
    assert native.Slab.open(str(path)).base_id == 1
    if how == "mode":
        folder.chmod(0o711)
    elif how == "owner":
        os.chown(folder, NOBODY, NOBODY)
    elif how == "file":
        os.chown(path, NOBODY, NOBODY)
    else:
        path.rename(aside)
        path.symlink_to(aside)
    with pytest.raises(CorruptError if how == "link" else PermissionDeniedError):
        native.Slab.open(str(path))
    if how in ("mode", "owner"):
        with pytest.raises(PermissionDeniedError):
            native.Slab.create(str(folder / "base-2.slab"), 2, image)
        assert native.Slab.open(str(path), ours=False).base_id == 1  # `medes inspect` looks at anybody's


def test_a_free_name_is_one_that_nothing_has(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    assert free_name(path).name == "kept-1"
    (tmp_path / "kept-1").touch()
    (tmp_path / "kept-2").symlink_to("nothing")
    assert free_name(path).name == "kept-3"
