"""Which folder is meant by a cgroup's name: what people have at hand is what /proc/PID/cgroup or an engine prints.

Accepted are the folder itself; lines of /proc/PID/cgroup, of version 2 (`0::/a/b`) and 1 (`4:memory:/a/b`); a path below
the hierarchy's root (`/a/b`, `a/b`), as engines and systemd print it; runc's `slice:prefix:name`; and the last part of a
path (`docker-….scope`) where only one cgroup is called so.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from medes import native
from medes.errors import InvalidArgumentError, LimitExceededError, MedesError, NotFoundError

CGROUP_CHARS_MAX = 8192  # /proc/PID/cgroup of a machine with many hierarchies
FOLDERS_SEARCHED_MAX = 20_000
CANDIDATES_SHOWN = 5
PROCESSES_FILE = "cgroup.procs"
# Version 1 has a hierarchy for each: the first in which the group has processes is taken.
PREFERRED = ("memory", "pids", "freezer", "cpu", "name=systemd")


@dataclass(frozen=True, slots=True)
class _Hierarchy:
    mount: Path
    root: str  # what of the hierarchy is mounted there
    controllers: frozenset[str]  # none: version 2

    def folder(self, path: str) -> Path | None:
        """The folder of a group; None where it is not mounted."""
        inside = os.path.normpath("/" + path.lstrip("/"))
        if self.root != "/" and (inside == self.root or inside.startswith(self.root + "/")):
            inside = inside[len(self.root) :]
        folder = self.mount / inside.lstrip("/")
        return folder if (folder / PROCESSES_FILE).is_file() else None


def resolve(text: str) -> str:
    """The folder of the cgroup that `text` names; it has processes. Blocks.

    Raises invalid_argument, limit_exceeded, and not_found that names cgroups that may have been meant.
    """
    if len(text) > CGROUP_CHARS_MAX:
        raise LimitExceededError(f"longer than {CGROUP_CHARS_MAX} characters", object="cgroup")
    if not text.strip() or "\0" in text:
        raise InvalidArgumentError("is empty or has a NUL", object="cgroup")
    hierarchies = _hierarchies()
    found = [folder for folder in _meant(text.strip(), hierarchies) if folder is not None]
    for folder in found:
        if folder in {h.mount for h in hierarchies}:
            raise InvalidArgumentError(
                "this is the root: it holds every process", object=f"cgroup {text[:200]!r}"
            )
    for folder in found:
        if _has_processes(folder):
            return str(folder)
    if found:
        raise NotFoundError("no process in this cgroup", object=str(found[0]))
    called, similar = _search(text.strip(), hierarchies)
    if len({str(path) for _, path in called}) == 1:
        return str(next((folder for folder, _ in called if _has_processes(folder)), called[0][0]))
    shown = sorted({str(path) for _, path in called or similar})[:CANDIDATES_SHOWN]
    if called:
        raise InvalidArgumentError(
            "more than one cgroup is called so", object=f"cgroup {text[:200]!r}", hint=", ".join(shown)
        )
    raise NotFoundError(
        "no such cgroup",
        object=f"cgroup {text[:200]!r}",
        hint="perhaps " + ", ".join(shown)
        if shown
        else "a line of /proc/PID/cgroup, or a folder below /sys/fs/cgroup",
    )


def _has_processes(folder: Path) -> bool:
    try:
        return bool(native.cgroup_pids(str(folder)))
    except LimitExceededError:
        raise
    except MedesError:
        return False


def _meant(text: str, hierarchies: list[_Hierarchy]) -> Iterator[Path | None]:
    """Folders that the text may name, the best first."""
    folder = Path(os.path.normpath(text))
    if folder.is_absolute() and (folder / PROCESSES_FILE).is_file():
        yield folder
        return
    lines = [line.split(":", 2) for line in text.splitlines()]
    if all(len(parts) == 3 and parts[0].isdecimal() for parts in lines):
        wanted = [(frozenset(c for c in names.split(",") if c), path) for _, names, path in lines]
        for hierarchy in hierarchies:
            for controllers, path in wanted:
                # A process is in the root of every hierarchy that nobody put it into: such a line says nothing.
                if hierarchy.controllers == controllers and (path != "/" or len(wanted) == 1):
                    yield hierarchy.folder(path)
        return
    path = _systemd_path(*lines[0]) if len(lines) == 1 and len(lines[0]) == 3 else text
    for hierarchy in hierarchies:
        yield hierarchy.folder(path)


def _systemd_path(slice_name: str, prefix: str, name: str) -> str:
    """Where systemd puts runc's `slice:prefix:name`: a.slice/a-b.slice/prefix-name.scope."""
    parts = (slice_name or "system.slice").removesuffix(".slice").split("-")
    slices = ["-".join(parts[: i + 1]) + ".slice" for i in range(len(parts))]
    unit = name if name.endswith(".slice") else f"{prefix}-{name}.scope" if prefix else f"{name}.scope"
    return "/".join([*slices, unit])


def _hierarchies() -> list[_Hierarchy]:
    """The mounted ones: version 2 first, then version 1 in the order of PREFERRED."""
    found: dict[Path, _Hierarchy] = {}
    for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
        before, _, after = line.partition(" - ")
        fields, kinds = before.split(), after.split()
        if len(fields) < 5 or len(kinds) < 3 or kinds[0] not in ("cgroup", "cgroup2"):
            continue
        mount = Path(fields[4].encode().decode("unicode_escape"))
        options = set(kinds[2].split(",")) if kinds[0] == "cgroup" else set()
        controllers = frozenset(o for o in options if o not in ("rw", "ro", "xattr", "clone_children"))
        controllers = frozenset(o for o in controllers if "=" not in o or o.startswith("name="))
        found[mount] = _Hierarchy(mount, fields[3], controllers)
    order = {name: i for i, name in enumerate(PREFERRED)}
    return sorted(
        found.values(),
        key=lambda h: min((order.get(c, len(order)) for c in h.controllers), default=-1),
    )


def _search(
    text: str, hierarchies: list[_Hierarchy]
) -> tuple[list[tuple[Path, Path]], list[tuple[Path, Path]]]:
    """(folder, path in its hierarchy) of the cgroups whose last part is the text, and of those that hold it."""
    wanted = text.rstrip("/").rpartition("/")[2]
    called, similar = [], []
    searched = 0
    for hierarchy in hierarchies:
        for parent, folders, _ in os.walk(hierarchy.mount):
            searched += len(folders)
            for name in folders:
                folder = Path(parent, name)
                pair = (folder, Path("/") / folder.relative_to(hierarchy.mount))
                if name == wanted and "/" not in text:
                    called.append(pair)
                elif len(wanted) >= 4 and wanted in name:
                    similar.append(pair)
            if searched > FOLDERS_SEARCHED_MAX:
                return called, similar
    return called, similar
