"""The live driver: the processes stay, only their memory goes and comes back through userfaultfd."""

from __future__ import annotations

from medes import native
from medes.config import AgentSettings
from medes.drivers.driver import AWAKE_AT_ONCE, Sleep
from medes.drivers.process.subject import ProcessSubject
from medes.drivers.process.subjects import ProcessSubjects


class LiveDriver:
    """Thin: everything is done by the C++ threads of one native.FaultServer."""

    name = "live"
    subjects = ProcessSubjects
    frees = True

    @staticmethod
    def missing() -> dict[str, str]:
        return native.probe_live()

    @classmethod
    def make(cls, settings: AgentSettings) -> LiveDriver:
        return cls(threads=settings.fault_threads)

    def __init__(self, threads: int = 2) -> None:
        """Raises unsupported or permission_denied where native.probe_live() is not empty."""
        self._server = native.FaultServer(threads)

    def capture(self, subject: ProcessSubject, fork_sharers_max: int | None = None) -> native.MemoryImage:
        """A live image: the bytes stay in the sandbox until they are encoded, and are compared at the eviction."""
        return native.attach(subject.members(), fork_sharers_max)

    def evict(
        self,
        subject: ProcessSubject,
        image: native.MemoryImage,
        file: native.SandboxFile,
        bases: native.BaseSet,
        hold_frozen: bool = False,
        cancel: native.CancelFlag | None = None,
        sleep: Sleep = AWAKE_AT_ONCE,
    ) -> native.LiveSandbox:
        return self._server.evict(
            image,
            file,
            bases,
            hold_frozen,
            cancel,
            sleep.working_set,
            sleep.tick_set,
            sleep.touches_per_s_max,
        )

    def adopt(
        self,
        subject: ProcessSubject,
        file: native.SandboxFile,
        bases: native.BaseSet,
        sleep: Sleep = AWAKE_AT_ONCE,
    ) -> native.LiveSandbox:
        return self._server.adopt(file, bases, sleep.working_set, sleep.touches_per_s_max)

    @property
    def event_fd(self) -> int:
        return self._server.event_fd

    def take_events(self) -> list[tuple[str, str]]:
        return self._server.take_events()

    def release_gone(self) -> None:
        self._server.release_gone()

    def stats(self) -> dict[str, int]:
        return self._server.stats()

    def close(self) -> None:
        """Stops serving; sandboxes that are not complete wait until they are adopted."""
        self._server.close()
