"""Registry stores, as a test opens them. What a store of one's own needs to run test_registry_stores.py over it is one more
of these classes, named in the environment: `MEDES_REGISTRY_STORE_CASE=my_package.conformance:EtcdCase`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from medes.controller.registry.store import MemoryStore, RegistryStore
from tests.conformance.named_case import named_case

CASE_VARIABLE = "MEDES_REGISTRY_STORE_CASE"


class StoreCase(ABC):
    """How it is made. Made without arguments."""

    name: ClassVar[str]

    @abstractmethod
    def open(self, folder: Path) -> RegistryStore:
        """An empty one, for one test, which closes it. The folder is the test's own."""


class MemoryCase(StoreCase):
    name = "memory"

    def open(self, folder: Path) -> RegistryStore:
        return MemoryStore()


def cases() -> list[type[StoreCase]]:
    return [MemoryCase, *named_case(CASE_VARIABLE)]
