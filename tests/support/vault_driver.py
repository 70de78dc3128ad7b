"""A driver as somebody else would write it, for sandboxes without any process: each is a file of bytes, which the driver
empties and fills. It knows nothing of the project but its public parts; agents load it from a distribution of its own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medes import native
from medes.config import AgentSettings
from medes.drivers.driver import AWAKE_AT_ONCE, Sleep
from medes.drivers.eager import EagerHandle
from medes.drivers.subject import Asked, Subject, Subjects
from medes.errors import BusyError, CancelledError, InvalidArgumentError, NotFoundError, ProcessGoneError


class Vault(Subject):
    """The file of that path, while it is there."""

    def __init__(self, sandbox_id: str, path: str) -> None:
        self.sandbox_id = sandbox_id
        self.name = path
        self.path = Path(path)
        self.marker = Path(f"{path}.out")  # there while pages are out

    @property
    def parts(self) -> tuple[str, ...]:
        return (f"vault {self.path}",)

    def to_json(self) -> dict[str, Any]:
        return {"vault": str(self.path)}

    def gone(self) -> bool:
        return not self.path.exists()

    def pages_out(self, file: native.SandboxFile | None) -> bool:
        return self.marker.exists()

    def private_bytes(self) -> int:
        try:
            return self.path.stat().st_blocks * 512
        except FileNotFoundError as error:
            raise ProcessGoneError("the file is gone", object=str(self.path)) from error

    def end(self, owner: int | None, file: native.SandboxFile | None) -> None:
        self.path.unlink(missing_ok=True)
        self.marker.unlink(missing_ok=True)


class Vaults(Subjects):
    def registered(self, sandbox_id: str, asked: Asked) -> Vault:
        if not asked.subject.startswith("/"):
            raise InvalidArgumentError("a vault is a path", object=sandbox_id, hint="give a subject")
        if not Path(asked.subject).is_file():
            raise NotFoundError("no such vault", object=asked.subject)
        return Vault(sandbox_id, asked.subject)

    def from_json(self, sandbox_id: str, record: Mapping[str, Any]) -> Vault:
        return Vault(sandbox_id, str(record["vault"]))


class VaultDriver:
    name = "vault"
    subjects = Vaults
    frees = True
    event_fd = -1

    @staticmethod
    def missing() -> dict[str, str]:
        return {}

    @classmethod
    def make(cls, settings: AgentSettings) -> VaultDriver:
        return cls()

    def capture(self, subject: Vault, fork_sharers_max: int | None = None) -> native.MemoryImage:
        return native.MemoryImage.from_buffer(_read(subject))

    def evict(
        self,
        subject: Vault,
        image: native.MemoryImage,
        file: native.SandboxFile,
        bases: native.BaseSet,
        hold_frozen: bool = False,
        cancel: native.CancelFlag | None = None,
        sleep: Sleep = AWAKE_AT_ONCE,
    ) -> EagerHandle:
        if cancel is not None and cancel.cancelled:
            raise CancelledError("cancelled before the eviction", object=str(subject.path))
        data = _read(subject)
        if image.pages(0, image.page_count)[: len(data)] != data:
            raise BusyError("it was written to meanwhile", object=str(subject.path))
        subject.marker.touch()
        os.truncate(subject.path, 0)
        os.truncate(subject.path, len(data))
        return self._handle(subject, file, bases)

    def adopt(
        self, subject: Vault, file: native.SandboxFile, bases: native.BaseSet, sleep: Sleep = AWAKE_AT_ONCE
    ) -> EagerHandle:
        if subject.gone():
            raise ProcessGoneError("the file is gone", object=str(subject.path))
        return self._handle(subject, file, bases)

    def _handle(self, subject: Vault, file: native.SandboxFile, bases: native.BaseSet) -> EagerHandle:
        def fill() -> None:
            try:
                with subject.path.open("r+b") as out:
                    file.write_pages(out.fileno(), bases)
            except FileNotFoundError as error:
                raise ProcessGoneError("the file is gone", object=str(subject.path)) from error
            subject.marker.unlink(missing_ok=True)

        evicted = {"evicted_pages": file.page_count, "changed_pages": 0, "stopped_us": 0}
        return EagerHandle(file, fill, evicted)

    def take_events(self) -> list[tuple[str, str]]:
        return []

    def release_gone(self) -> None:
        """Nothing is held."""

    def close(self) -> None:
        """Nothing is held."""


def _read(subject: Vault) -> bytes:
    try:
        return subject.path.read_bytes()
    except FileNotFoundError as error:
        raise ProcessGoneError("the file is gone", object=str(subject.path)) from error
