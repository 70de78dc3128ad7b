"""systemd service files, as far as the project's use them."""

from __future__ import annotations

from pathlib import Path

# Each of these makes systemd install a seccomp filter (systemd.exec(5)); DynamicUser implies RestrictSUIDSGID.
FILTERS = frozenset(
    (
        "SystemCallFilter",
        "SystemCallLog",
        "SystemCallArchitectures",
        "RestrictAddressFamilies",
        "RestrictNamespaces",
        "RestrictRealtime",
        "RestrictSUIDSGID",
        "LockPersonality",
        "MemoryDenyWriteExecute",
        "PrivateDevices",
        "ProtectClock",
        "ProtectHostname",
        "ProtectKernelLogs",
        "ProtectKernelModules",
        "ProtectKernelTunables",
        "DynamicUser",
    )
)


class Unit:
    """The [Service] section: every value of a directive, in order."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self.service: dict[str, list[str]] = {}
        section = ""
        for line in path.read_text().splitlines():
            if not line.strip() or line.lstrip().startswith(("#", ";")):
                continue
            if line.startswith("["):
                section = line
            elif section == "[Service]":
                name, _, value = line.partition("=")
                self.service.setdefault(name, []).append(value)

    def one(self, name: str, default: str = "") -> str:
        return self.service.get(name, [default])[-1]

    def words(self, name: str) -> list[str]:
        return [word for value in self.service.get(name, []) for word in value.split()]

    def on(self, name: str) -> bool:
        return self.one(name) in ("yes", "true", "1", "on")
