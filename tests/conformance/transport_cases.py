"""Page transports, as a test opens their two sides. What a transport of one's own needs to run test_transports.py over it is
one more of these classes, named in the environment: `MEDES_TRANSPORT_CASE=my_package.conformance:SharedCase`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from medes.transport.transport import Transport
from tests.conformance.named_case import named_case
from tests.support.folder_transport import FolderTransport

CASE_VARIABLE = "MEDES_TRANSPORT_CASE"


class TransportCase(ABC):
    """How its sides are made. Made without arguments."""

    name: ClassVar[str]

    @abstractmethod
    def open(self, folder: Path) -> Transport:
        """One side. Holder and reader of a test, both in this process, are given the same folder."""


class FolderCase(TransportCase):
    """Nothing of the project knows of it."""

    name = "folder"

    def open(self, folder: Path) -> Transport:
        return FolderTransport(folder)


def cases() -> list[type[TransportCase]]:
    return [FolderCase, *named_case(CASE_VARIABLE)]
