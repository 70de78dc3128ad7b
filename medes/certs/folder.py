"""The cluster folder: where the CA of a cluster lies on the machine that may sign with it.

Whoever reads `authority.pem` can be anybody in the cluster, so the folder is this user's alone, and nothing on the way
to it can be exchanged by another. The first daemon of a machine makes it; of two that start at once both use one CA.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from medes.errors import AlreadyExistsError, CorruptError, IoError, NotFoundError, PermissionDeniedError
from medes.folders import walk_to
from medes.limits import TLS_FILE_BYTES_MAX

if TYPE_CHECKING:
    from medes.certs.authority import Authority

DEFAULT = Path("/var/lib/medes/cluster")
VARIABLE = "MEDES_CLUSTER_DIR"
AUTHORITY_FILE = "authority.pem"  # certificate and key in one file, so that they appear together
NEXT_FILE = "next.pem"  # the same of the CA that is to follow (medes.certs.exchange)
_OTHER = f"set cluster_dir or {VARIABLE} to a folder of your own"
CA_FILE = "ca.crt"  # what is believed: the certificate alone, during an exchange both; to be given away


def cluster_folder(setting: str = "") -> Path:
    """The folder that a setting, the environment or the default names."""
    return Path(setting or os.environ.get(VARIABLE, "") or DEFAULT)


def load_authority(folder: Path) -> Authority:
    """The CA in the folder. Raises not_found without one, permission_denied, io, corrupt."""
    with opened(folder) as descriptor:
        authority = _load(descriptor, folder, AUTHORITY_FILE)
        believed = _read_private(descriptor, folder, CA_FILE, 0o022)
        if believed is not None:
            authority.believe(believed)
        return authority


def load_next(folder: Path) -> Authority:
    """The CA that is to follow. Raises not_found without one, else as load_authority."""
    with opened(folder) as descriptor:
        return _load(descriptor, folder, NEXT_FILE)


def marks(folder: Path) -> tuple[tuple[int, int, int], ...]:
    """What changes when the CA or what is believed does. Raises io."""
    found = []
    for name in (AUTHORITY_FILE, CA_FILE):
        try:
            info = (folder / name).lstat()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise IoError(error.strerror or str(error), object=str(folder / name)) from error
        found.append((info.st_ino, info.st_mtime_ns, info.st_size))
    return tuple(found)


def opened(folder: Path) -> _opened:
    """The folder as a descriptor, verified, for a `with` block. Raises not_found, permission_denied, io."""
    return _opened(folder, make=False)


def make_authority(folder: Path) -> Authority:
    """A new CA in a folder that has none. Raises already_exists, permission_denied, io."""
    from medes.certs.authority import Authority

    with _opened(folder, make=True) as descriptor:
        made = Authority.create()
        try:
            write_file(descriptor, AUTHORITY_FILE, made.pem, replace=False)
        except FileExistsError:
            raise AlreadyExistsError("a CA lies there already", object=str(folder)) from None
        write_file(descriptor, CA_FILE, made.certificate_pem)
        return made


def find_authority(folder: Path) -> Authority:
    """The CA in the folder; made there where none is. Raises permission_denied, io, corrupt."""
    with contextlib.suppress(NotFoundError):
        return load_authority(folder)
    try:
        return make_authority(folder)
    except AlreadyExistsError:  # another daemon was quicker
        return load_authority(folder)


class _opened:
    """The folder as a descriptor, verified; with `make` it is made where it is missing (its parents too)."""

    def __init__(self, folder: Path, *, make: bool) -> None:
        self._folder = folder
        self._make = make
        self._descriptor = -1

    def __enter__(self) -> int:
        folder = self._folder
        try:
            walk_to(folder.absolute(), make=self._make, other=_OTHER)
            self._descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except (FileNotFoundError, NotFoundError):
            raise NotFoundError("no cluster folder", object=str(folder), hint="medes certs init") from None
        except OSError as error:
            raise _refused(error, folder) from error
        try:
            check_private(os.fstat(self._descriptor), folder, 0o077)
        except BaseException:
            os.close(self._descriptor)
            raise
        return self._descriptor

    def __exit__(self, *exc: object) -> None:
        os.close(self._descriptor)


def check_private(found: os.stat_result, path: Path, others: int) -> None:
    """Raises permission_denied unless it is this user's (or root's) and has none of the bits `others`."""
    if found.st_uid not in (0, os.geteuid()):
        raise PermissionDeniedError("belongs to another user", object=str(path))
    if found.st_mode & others:
        raise PermissionDeniedError(
            f"is open to others (mode {stat.S_IMODE(found.st_mode):04o})",
            object=str(path),
            hint="chmod go-rwx, and a new CA if others may have read it",
        )


def _load(descriptor: int, folder: Path, name: str) -> Authority:
    from medes.certs.authority import Authority

    pem = _read_private(descriptor, folder, name, 0o077)
    if pem is None:
        raise NotFoundError("no CA in this folder", object=str(folder), hint="medes certs init")
    return Authority.load(pem, str(folder / name))


def _read_private(descriptor: int, folder: Path, name: str, others: int) -> bytes | None:
    """A file of the folder that has none of the bits `others`; None where there is none."""
    where = folder / name
    try:
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=descriptor)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _refused(error, where) from error
    with os.fdopen(file, "rb") as stream:
        check_private(os.fstat(file), where, others)
        pem = stream.read(TLS_FILE_BYTES_MAX + 1)
    if len(pem) > TLS_FILE_BYTES_MAX:
        raise CorruptError("too large for a CA", object=str(where))
    return pem


def write_file(descriptor: int, name: str, data: bytes, *, mode: int = 0o600, replace: bool = True) -> None:
    """Writes a file of an open folder whole or not at all; it is on the disk when this returns. Raises io, and
    FileExistsError without `replace`."""
    temporary = f".{name}.{os.urandom(4).hex()}"
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(temporary, flags, mode, dir_fd=descriptor), "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        if replace:
            os.rename(temporary, name, src_dir_fd=descriptor, dst_dir_fd=descriptor)
        else:
            os.link(temporary, name, src_dir_fd=descriptor, dst_dir_fd=descriptor)
        os.fsync(descriptor)
    except FileExistsError:
        raise
    except OSError as error:
        raise IoError(error.strerror or str(error), object=name) from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=descriptor)


def _refused(error: OSError, path: Path) -> PermissionDeniedError | IoError:
    if isinstance(error, PermissionError):
        return PermissionDeniedError(
            "this user may not use the cluster's CA",
            object=str(path),
            hint=f"run as root, {_OTHER}, or name TLS files",
        )
    return IoError(error.strerror or str(error), object=str(path))
