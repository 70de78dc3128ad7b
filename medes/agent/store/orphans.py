"""Files of shm_dir that the agent does not know: left where they are, listed, and removed by command only.

A file is here because it could not be read now, was written by a newer agent, is damaged, or says nothing of whose it
is. Any of them may hold the only copy of a living process's pages.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from medes.errors import IoError, MedesError, NotFoundError
from medes.folders import free_name
from medes.limits import ORPHANS_LISTED_MAX
from medes.types import OrphanFile

TEMPORARY = re.compile(
    r"\.tmp-\d+-\d+$"
)  # as native/store/shm_file.cc names them; a sandbox's id may have ".tmp-" in it
SET_ASIDE = "set-aside"  # a subfolder: files whose names were needed


@dataclass(frozen=True, slots=True)
class Orphan:
    """Why a file was left alone."""

    path: str
    error: MedesError


def own_files(folder: Path) -> list[Path]:
    """Files the agent makes in shm_dir, temporary ones included; nothing else there is ever touched. Raises io."""
    try:
        found = [p for p in folder.iterdir() if p.name.startswith(("base-", "sandbox-"))]
        return sorted(p for p in found if p.is_file() and not p.is_symlink())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise IoError(str(error), object=str(folder)) from error


def is_temporary(path: Path) -> bool:
    """Whether a file was being written by an agent that has ended: it was never renamed to what it was to be."""
    return TEMPORARY.search(path.name) is not None


def set_aside(path: Path) -> None:
    """(blocks) Moves a file out of the way of a new one of its name, if there is one. Raises io."""
    aside = path.parent / SET_ASIDE
    try:
        if not path.exists():
            return
        aside.mkdir(mode=0o700, exist_ok=True)
        path.rename(free_name(aside / path.name))
    except OSError as error:
        raise IoError(str(error), object=str(path)) from error


def listed(folder: Path, known: dict[str, Orphan]) -> list[OrphanFile]:
    """(blocks) What is there, with its name relative to the folder. Raises io."""
    found = []
    for path in [*map(Path, sorted(known)), *_aside(folder)][:ORPHANS_LISTED_MAX]:
        try:
            info = path.stat()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise IoError(str(error), object=str(path)) from error
        orphan = known.get(str(path))
        reason = orphan.error.message if orphan else "another file took its name"
        code = orphan.error.code if orphan else ""
        name = str(path.relative_to(folder))
        found.append(OrphanFile(name, info.st_blocks * 512, int(info.st_mtime), code, reason))
    return found


def remove(folder: Path, name: str, known: dict[str, Orphan]) -> None:
    """(blocks) Removes one that `listed` names, for good. Raises not_found for any other, io."""
    path = folder / name
    if str(path) not in known and path not in _aside(folder):
        raise NotFoundError("no such file is set aside", object=name[:300], hint="see medes orphans ls")
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise IoError(str(error), object=str(path)) from error
    known.pop(str(path), None)


def _aside(folder: Path) -> list[Path]:
    try:
        return sorted(p for p in (folder / SET_ASIDE).iterdir() if p.is_file())
    except OSError:
        return []
