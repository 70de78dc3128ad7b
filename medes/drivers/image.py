"""The image driver: the whole dedup pipeline on captured memory images, where the live driver cannot run.

The sandbox's processes keep their memory, so nothing is saved and nothing can be lost. What a restore does is real:
every page is rebuilt from the sandbox file and the base pages, and compared with the image that was captured.
"""

from __future__ import annotations

from medes import native
from medes.config import AgentSettings
from medes.drivers.driver import AWAKE_AT_ONCE, Sleep
from medes.drivers.eager import EagerHandle
from medes.drivers.process.subject import ProcessSubject
from medes.drivers.process.subjects import ProcessSubjects
from medes.errors import CancelledError


class ImageDriver:
    """Works anywhere that /proc/<pid>/mem of the sandbox can be read."""

    name = "image"
    subjects = ProcessSubjects
    frees = False
    event_fd = -1

    @staticmethod
    def missing() -> dict[str, str]:
        return {}

    @classmethod
    def make(cls, settings: AgentSettings) -> ImageDriver:
        return cls()

    def capture(self, subject: ProcessSubject, fork_sharers_max: int | None = None) -> native.MemoryImage:
        """A copy, which a restore is compared with. Of all pages, as none goes."""
        return native.capture(subject.members())

    def evict(
        self,
        subject: ProcessSubject,
        image: native.MemoryImage,
        file: native.SandboxFile,
        bases: native.BaseSet,
        hold_frozen: bool = False,
        cancel: native.CancelFlag | None = None,
        sleep: Sleep = AWAKE_AT_ONCE,
    ) -> EagerHandle:
        """Evicts nothing. Raises cancelled."""
        if cancel is not None and cancel.cancelled:
            raise CancelledError("cancelled before the eviction", object=file.path)
        return EagerHandle(file, lambda: file.verify(bases, image))

    def adopt(
        self,
        subject: ProcessSubject,
        file: native.SandboxFile,
        bases: native.BaseSet,
        sleep: Sleep = AWAKE_AT_ONCE,
    ) -> EagerHandle:
        """After a restart the image is gone: a restore then checks against the page checksums only."""
        return EagerHandle(file, lambda: file.verify(bases, None))

    def take_events(self) -> list[tuple[str, str]]:
        return []

    def release_gone(self) -> None:
        """Nothing is held."""

    def close(self) -> None:
        """Nothing is held."""
