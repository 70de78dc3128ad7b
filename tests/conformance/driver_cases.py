"""Sandboxes of each driver, as a test makes and judges them. What a driver of one's own needs to run test_drivers.py over it
is one more of these classes, named in the environment: `MEDES_DRIVER_CASE=my_package.conformance:VmCase`."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from medes import native
from medes.drivers.subject import Asked
from tests.conformance.named_case import named_case
from tests.support import vault_driver
from tests.support.counter_app import App

CASE_VARIABLE = "MEDES_DRIVER_CASE"


class Sandbox(ABC):
    """One that runs, and its memory."""

    asked: Asked

    @abstractmethod
    def check(self) -> None:
        """Fails unless every byte is what it was when the sandbox was made or last touched. It may wake it."""

    @abstractmethod
    def touch(self) -> None:
        """Changes some of its memory."""

    @abstractmethod
    def alive(self) -> bool: ...
    @abstractmethod
    def end(self) -> None:
        """Ends it, as by a crash. Idempotent."""


class DriverCase(ABC):
    """How its sandboxes are made. Made without arguments."""

    driver: ClassVar[str]  # its name in medes.plugins
    survives: ClassVar[bool] = True  # whether a dedup'd sandbox is still dedup'd for the next agent
    module: ClassVar[str] = ""  # its text, of one that is installed for the test only

    @abstractmethod
    def sandbox(self, folder: Path, seed: int) -> Sandbox:
        """One of about 8 MB; those of other seeds resemble it."""


class AppSandbox(Sandbox):
    """A process; see tests.support.counter_app."""

    def __init__(self, seed: int) -> None:
        self._app = App(seed=seed)
        self.asked = Asked(pids=(self._app.pid,))

    def check(self) -> None:
        self._app.ask()

    def touch(self) -> None:
        self._app.touch(20)

    def alive(self) -> bool:
        return self._app.alive()

    def end(self) -> None:
        self._app.close()


class LiveCase(DriverCase):
    driver = "live"

    def sandbox(self, folder: Path, seed: int) -> Sandbox:
        return AppSandbox(seed)


class ImageCase(DriverCase):
    driver = "image"
    survives = False  # no page of it was ever out

    def sandbox(self, folder: Path, seed: int) -> Sandbox:
        return AppSandbox(seed)


class VaultSandbox(Sandbox):
    """A file of bytes."""

    def __init__(self, path: Path, seed: int) -> None:
        self._path = path
        shared, own = random.Random(7), random.Random(seed)
        self._data = bytearray(shared.randbytes(7 << 20) + own.randbytes(1 << 20) + b"and a bit")
        path.write_bytes(self._data)
        self.asked = Asked(subject=str(path))

    def check(self) -> None:
        assert self._path.read_bytes()[: len(self._data)] == self._data

    def touch(self) -> None:
        for at in range(0, len(self._data), 1 << 19):
            self._data[at] ^= 0x5A
        self._path.write_bytes(self._data)

    def alive(self) -> bool:
        return self._path.exists()

    def end(self) -> None:
        self._path.unlink(missing_ok=True)


class VaultCase(DriverCase):
    """Nothing of the project knows of it."""

    driver = "vault"
    module = Path(vault_driver.__file__).read_text()

    def sandbox(self, folder: Path, seed: int) -> Sandbox:
        return VaultSandbox(folder / f"vault-{seed}", seed)


def cases() -> list[type[DriverCase]]:
    return [LiveCase, ImageCase, VaultCase, *named_case(CASE_VARIABLE)]


def encoded(image: native.MemoryImage, folder: Path) -> tuple[native.SandboxFile, native.BaseSet]:
    """The file of a dedup op without any base, and what it is restored with."""
    bases = native.BaseSet()
    prints, locations, _ = native.survey(image, 8, native.FingerprintIndex())
    plan = native.plan_windows(image, prints, locations)
    path = folder / "sandbox-s0.medes"
    path.unlink(missing_ok=True)
    return native.SandboxFile.create(str(path), b"{}", image, native.encode(image, plan, bases)), bases
