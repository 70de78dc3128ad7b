"""What the agent asks of a sandbox driver (medes.drivers has them), and which one a sandbox gets."""

from __future__ import annotations

from typing import Protocol

from medes import native


class LiveHandle(Protocol):
    """One dedup'd sandbox, as `native.LiveSandbox`."""

    @property
    def state(self) -> str: ...
    @property
    def evict_result(self) -> dict[str, int]: ...
    @property
    def notes(self) -> list[str]:
        """What could not be evicted, and why."""
        ...

    @property
    def lost_reason(self) -> str: ...
    @property
    def lost_code(self) -> str:
        """The cause of the loss as a catalogue code; "ok" unless lost."""
        ...

    @property
    def needed(self) -> bool:
        """Whether a process that lives, forked ones included, has pages out that come from here alone."""
        ...

    def restore(
        self, lazy: bool = True, working_set: bytes = b"", background_bytes_per_s: int = 0
    ) -> None: ...
    def wait_ready(self, timeout_s: float) -> bool: ...
    def wait_complete(self, timeout_s: float) -> bool: ...
    def stats(self) -> dict[str, int]: ...
    def working_set(self) -> bytes: ...
    def set_working_set(self, working_set: bytes) -> None:
        """What to prefetch when the sandbox wakes by its own fault."""
        ...

    def detach(self) -> None:
        """Lets go of the sandbox as it is; waits for its restore raise cancelled."""
        ...


class Driver(Protocol):
    """How the memory of sandboxes is taken and given back. Calls block: not for the event loop's thread."""

    @property
    def name(self) -> str: ...
    @property
    def frees(self) -> bool:
        """Whether an eviction gives memory back. Where it does not, what it writes comes on top."""
        ...

    def capture(self, pids: list[int], sharers_max: int | None = None) -> native.MemoryImage:
        """What can be evicted. With `sharers_max`, without pages that processes outside share, or more than so many of
        `pids`. Raises process_gone, permission_denied, traced, limit_exceeded, unsupported."""
        ...

    def evict(
        self,
        image: native.MemoryImage,
        file: native.SandboxFile,
        bases: native.BaseSet,
        hold_frozen: bool = False,
        cancel: native.CancelFlag | None = None,
        working_set: bytes = b"",
    ) -> LiveHandle:
        """`working_set`: what to prefetch should the sandbox wake by its own fault."""
        ...

    def adopt(self, file: native.SandboxFile, bases: native.BaseSet) -> LiveHandle: ...
    @property
    def event_fd(self) -> int:
        """Readable when take_events() has something; negative for a driver without events."""
        ...

    def take_events(self) -> list[tuple[str, str]]: ...
    def release_gone(self) -> None:
        """Lets go of what is still held of processes that ended after their sandbox was detached. Called every
        few seconds, from the event loop: it must not block."""
        ...

    def close(self) -> None: ...
