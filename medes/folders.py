"""Folders whose contents decide what runs here: nobody but the daemon's own user (and root) may be able to put
anything there, or to put another folder in their place.

A folder is looked at by walking to it from the root, one component at a time and without following links blindly: each
folder on the way belongs to root or to the daemon's user, and others may write into it only where it is sticky (as
/tmp), which keeps them from renaming what is not theirs. A symbolic link is followed where only root or the
daemon's user could have put it. Checked once at start; `open_private` checks the folder itself again at each open.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import stat
from pathlib import Path

from medes.errors import CorruptError, IoError, MedesError, NotFoundError, PermissionDeniedError
from medes.limits import FOLDER_LINKS_MAX

_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_OTHERS = 0o077
_OTHERS_WRITE = 0o022
_OTHER = "name a folder of the daemon's own"


def free_name(path: Path) -> Path:
    """PATH-1, PATH-2, …: the first that nothing has yet. For a folder that nobody else writes into. Blocks."""
    names = (path.with_name(f"{path.name}-{number}") for number in itertools.count(1))
    return next(name for name in names if not os.path.lexists(name))


def make_private_folder(path: Path, made: list[Path] | None = None, *, other: str = _OTHER) -> None:
    """Makes a folder (mode 0700, and its missing parents), or checks one that exists: it belongs to this user, nobody
    else may look into it, and nobody else can replace it. An empty one of this user's that others may only look
    into, as service managers make them, is closed to them. What is made is appended to `made`, outermost first;
    `other` says in the hints how to name another folder.

    Raises permission_denied, which names the folder and what is wrong with it; io where it cannot be made.
    """
    info = _walk(path, [] if made is None else made, other, modes=(0o755, 0o700))
    if info.st_uid == os.geteuid() and info.st_mode & _OTHERS and not info.st_mode & _OTHERS_WRITE:
        info = _close_empty(path)
    _refuse_not_private(info, path, other)


def _close_empty(path: Path) -> os.stat_result:
    fd = _open(str(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, path)
    try:
        if not os.listdir(fd):  # noqa: PTH208 (of the very folder that is changed)
            os.fchmod(fd, 0o700)
        return os.fstat(fd)
    finally:
        os.close(fd)


def make_socket_folder(path: Path, made: list[Path] | None = None, *, other: str = _OTHER) -> None:
    """The same for a folder that others may look into, as /run/medes or /tmp: nobody else can replace a socket
    there."""
    info = _walk(path, [] if made is None else made, other, modes=(0o755, 0o755))
    _refuse_open_to_others(info, path, other)


def walk_to(path: Path, *, make: bool, other: str = _OTHER) -> os.stat_result:
    """Goes to a folder from the root, and says what was found there: nobody else can put another in its place. What it
    is itself is for the caller to look at. With `make`, it and its parents are made where they are missing, closed
    to everybody else.

    Raises permission_denied, io; not_found without `make`.
    """
    return _walk(path, [], other, modes=(0o700, 0o700) if make else None)


def open_private(path: Path, flags: int, mode: int = 0o600) -> int:
    """Opens a regular file of this user in a private folder, relative to the folder and never through a link. The
    descriptor is the caller's.

    Raises not_found, permission_denied (folder or file are open to others, or somebody else's), corrupt (no regular
    file), io.
    """
    folder_fd = _open(str(path.parent), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, path.parent)
    try:
        _refuse_not_private(os.fstat(folder_fd), path.parent)
        # Without O_NONBLOCK a pipe in the file's place would hold the daemon.
        more = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        fd = _open(path.name, flags | more, path, mode=mode, folder_fd=folder_fd)
    finally:
        os.close(folder_fd)
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise CorruptError("not a regular file", object=str(path), hint="remove it")
        if info.st_uid != os.geteuid():
            raise PermissionDeniedError(
                f"belongs to {_name(info.st_uid)}, not to {_name(os.geteuid())}", object=str(path)
            )
        if info.st_mode & _OTHERS_WRITE:
            raise PermissionDeniedError(
                f"others may write to it (mode {stat.S_IMODE(info.st_mode):04o})",
                object=str(path),
                hint=f"chmod go-w {path}",
            )
    except MedesError:
        os.close(fd)
        raise
    return fd


def read_private(path: Path, bytes_max: int) -> bytes:
    """The contents of a file of `open_private`. Raises what that does, corrupt when it is longer than `bytes_max`."""
    with os.fdopen(open_private(path, os.O_RDONLY), "rb") as file:
        data = file.read(bytes_max + 1)
    if len(data) > bytes_max:
        raise CorruptError(f"longer than {bytes_max} bytes", object=str(path))
    return data


def write_private(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Replaces a file of mode 0600 in a private folder: all of it or nothing, and with `sync` on the disk when this
    returns. Raises what `open_private` does."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fd = open_private(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        fresh.rename(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)
        raise IoError(error.strerror or str(error), object=str(path)) from error
    if not sync:
        return
    folder_fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder_fd)
    finally:
        os.close(folder_fd)


def _walk(path: Path, made: list[Path], other: str, *, modes: tuple[int, int] | None) -> os.stat_result:
    """Goes to a folder from the root, makes what is missing with `modes` (of its parents, its own), refuses what others
    could have put. Says what was found there; the folder itself is not looked at yet."""
    if not path.is_absolute():
        raise IoError("not an absolute path", object=str(path))
    rest = list(path.parts[1:])
    links = 0
    here, fd = Path("/"), _open_root()
    try:
        info = os.fstat(fd)
        while rest:
            _refuse_open_to_others(info, here, other)
            name = rest.pop(0)
            # Of a folder without links in its path, ".." is the one before it.
            below = here.parent if name == ".." else here / name
            try:
                next_fd = _open(name, _LOOK, below, folder_fd=fd)
            except NotFoundError:
                if modes is None:
                    raise
                _make(name, below, fd, modes[0] if rest else modes[1], other)
                made.append(below)
                next_fd = _open(name, _LOOK, below, folder_fd=fd)
            found = os.fstat(next_fd)
            if stat.S_ISLNK(found.st_mode):
                os.close(next_fd)
                links += 1
                _refuse_link(info, here, below, links, other)
                # From the root again: what the link names is walked like everything else.
                rest = [*(here / os.readlink(name, dir_fd=fd)).parts[1:], *rest]
                next_fd, below = _open_root(), Path("/")
                found = os.fstat(next_fd)
            elif not stat.S_ISDIR(found.st_mode):
                os.close(next_fd)
                raise IoError("not a folder", object=str(below), hint=other)
            os.close(fd)
            here, fd, info = below, next_fd, found
        return info
    finally:
        os.close(fd)


def _open_root() -> int:
    return _open("/", _LOOK | os.O_DIRECTORY, Path("/"))


def _make(name: str, path: Path, folder_fd: int, mode: int, other: str) -> None:
    try:
        os.mkdir(name, mode, dir_fd=folder_fd)
        # The umask may have taken bits of the mode that the daemon needs.
        os.chmod(name, mode, dir_fd=folder_fd)
    except FileExistsError:
        return  # made meanwhile; it is looked at like any other
    except PermissionError as error:
        raise PermissionDeniedError("cannot make this folder", object=str(path), hint=other) from error
    except OSError as error:
        raise IoError(error.strerror or str(error), object=str(path)) from error


def _open(name: str, flags: int, path: Path, *, mode: int = 0o600, folder_fd: int | None = None) -> int:
    try:
        return os.open(name, flags, mode, dir_fd=folder_fd)
    except FileNotFoundError as error:
        raise NotFoundError("does not exist", object=str(path)) from error
    except PermissionError as error:
        raise PermissionDeniedError("may not be opened", object=str(path)) from error
    except OSError as error:
        if stat.S_ISLNK(_mode_of(path)):
            raise PermissionDeniedError("is a symbolic link", object=str(path), hint="remove it") from error
        raise IoError(error.strerror or str(error), object=str(path)) from error


def _mode_of(path: Path) -> int:
    try:
        return path.lstat().st_mode
    except OSError:
        return 0


def _trusted(uid: int) -> bool:
    return uid in (0, os.geteuid())


def _refuse_open_to_others(info: os.stat_result, path: Path, other: str) -> None:
    if not _trusted(info.st_uid):
        raise PermissionDeniedError(
            f"belongs to {_name(info.st_uid)}, who could replace what lies in it",
            object=str(path),
            hint=f"chown root {path}, or {other}",
        )
    if info.st_mode & _OTHERS_WRITE and not info.st_mode & stat.S_ISVTX:
        raise PermissionDeniedError(
            f"others may write into it (mode {stat.S_IMODE(info.st_mode):04o}) and so replace what lies in it",
            object=str(path),
            hint=f"chmod go-w {path}, or {other}",
        )


def _refuse_link(parent: os.stat_result, parent_path: Path, path: Path, links: int, other: str) -> None:
    if parent.st_mode & _OTHERS_WRITE:
        raise PermissionDeniedError(
            f"is a symbolic link in {parent_path}, where others may put such",
            object=str(path),
            hint=f"remove it, or {other}",
        )
    if links > FOLDER_LINKS_MAX:
        raise IoError("too many symbolic links", object=str(path))


def _refuse_not_private(info: os.stat_result, path: Path, other: str = _OTHER) -> None:
    """Of a folder whose contents are memory of sandboxes or decide over it."""
    if info.st_uid != os.geteuid():
        raise PermissionDeniedError(
            f"belongs to {_name(info.st_uid)}, not to {_name(os.geteuid())}: they could replace what lies in it",
            object=str(path),
            hint=f"remove it if nobody needs it, or {other}",
        )
    if info.st_mode & _OTHERS:
        verb = "write into it" if info.st_mode & _OTHERS_WRITE else "look into it"
        raise PermissionDeniedError(
            f"others may {verb} (mode {stat.S_IMODE(info.st_mode):04o}, must be 0700)",
            object=str(path),
            hint=f"if everything in it is yours: chmod 700 {path}; or {other}",
        )
    if info.st_mode & 0o700 != 0o700:
        raise PermissionDeniedError(
            f"not writable (mode {stat.S_IMODE(info.st_mode):04o}, must be 0700)",
            object=str(path),
            hint=f"chmod 700 {path}, or {other}",
        )


def _name(uid: int) -> str:
    try:
        return f"{pwd.getpwuid(uid).pw_name} ({uid})"
    except KeyError:
        return f"uid {uid}"
