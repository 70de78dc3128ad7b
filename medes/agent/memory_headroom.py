"""How much memory a process may still take before its memory cgroup, or one above it, kills."""

from __future__ import annotations

from pathlib import Path

CGROUP_ROOT = Path("/sys/fs/cgroup")


def headroom_bytes(pid: int, root: Path = CGROUP_ROOT, proc: Path = Path("/proc")) -> int | None:
    """The least over the process's memory cgroup and those above it; file cache counts as free. None without a limit,
    or where groups cannot be seen."""
    try:
        groups = (proc / str(pid) / "cgroup").read_text()
    except OSError:
        return None
    found = _folder(groups, root)
    if found is None:
        return None
    top, folder = found
    least: int | None = None
    for group in (folder, *folder.parents):
        room = _room(group)
        if room is not None:
            least = room if least is None else min(least, room)
        if group == top:
            break
    return least


def _folder(text: str, root: Path) -> tuple[Path, Path] | None:
    """(hierarchy, folder in it) of the memory controller, by the lines of /proc/<pid>/cgroup."""
    unified = None
    for line in text.splitlines():
        number, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            return root / "memory", root / "memory" / path.lstrip("/")
        if number == "0":
            unified = path.lstrip("/")
    return None if unified is None else (root, root / unified)


def _room(group: Path) -> int | None:
    """Cgroup v2's memory.max and memory.current, or what v1 calls them."""
    for limit_name, used_name in (
        ("memory.max", "memory.current"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        try:
            limit = (group / limit_name).read_text().strip()
            used = int((group / used_name).read_text())
            fields = dict(line.split(" ", 1) for line in (group / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue
        if limit == "max" or int(limit) >= 1 << 62:  # v1 has no word for it but the largest number of pages
            return None
        # v1 has each field twice; those of the whole subtree are what the limit is for.
        prefix = "total_" if "total_inactive_file" in fields else ""
        cache = sum(int(fields.get(prefix + name, 0)) for name in ("inactive_file", "active_file"))
        return int(limit) - max(0, used - cache)
    return None
