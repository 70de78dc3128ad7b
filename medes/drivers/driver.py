"""What the agent asks of a sandbox driver; medes.plugins lists them, medes.drivers.registry tells which run here.

What a sandbox is, apart from its pages, is its `Subject` (medes.drivers.subject). A driver's calls about one sandbox come one
after the other, from threads of the agent's workers; those about different sandboxes at the same time. Whatever raises
leaves the sandbox with all its memory, unless it says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from medes import native
from medes.config import AgentSettings
from medes.drivers.subject import Subjects


@dataclass(frozen=True, slots=True)
class Sleep:
    """How a dedup'd sandbox sleeps. Sets are packed as `Handle.working_set` packs them; a driver that does not know pages by
    such names leaves them alone.

    tick_set: pages that stay, since the sandbox touches them while nobody uses it. touches_per_s_max: so many touches within
    a second get their page and nothing else; one more starts its restore, with `working_set` prefetched."""

    tick_set: bytes = b""
    touches_per_s_max: int = 0
    working_set: bytes = b""


AWAKE_AT_ONCE = Sleep()  # the first touch restores it


class Handle(Protocol):
    """One dedup'd sandbox, as `native.LiveSandbox`. Any thread. Only the two waits and `detach` block; properties and `stats`
    are read from the event loop's thread."""

    @property
    def state(self) -> str:
        """dormant → restoring → complete; or lost, for good. It says `restoring` before a wait can return."""
        ...

    @property
    def evict_result(self) -> dict[str, int]:
        """evicted_pages, changed_pages, stopped_us; resident_bytes where the driver knows better than the subject."""
        ...

    @property
    def notes(self) -> list[str]:
        """What could not be evicted, and why."""
        ...

    @property
    def lost_reason(self) -> str: ...
    @property
    def lost_code(self) -> str:
        """The cause of the loss as a catalogue code; "ok" unless lost. One that passes (medes.errors.passes), with base pages
        of another node, makes the agent take the handle anew when they can be read."""
        ...

    @property
    def needed(self) -> bool:
        """Whether something of it that lives, forked processes included, has pages out that come from here alone."""
        ...

    def restore(self, lazy: bool = True, working_set: bytes = b"", background_bytes_per_s: int = 0) -> None:
        """Begins to give the pages back, and returns at once. Again: nothing, a restore under way goes on. Lazy: it may run
        before its last page is in. Failures are raised by the waits."""
        ...

    def wait_ready(self, timeout_s: float) -> bool:
        """(blocks) Whether it runs; False after the timeout. Repeatable, by several threads. Raises lost, process_gone, both for
        good, and cancelled after detach."""
        ...

    def wait_complete(self, timeout_s: float) -> bool:
        """The same of the last page. Nothing of the file or the bases is needed after it."""
        ...

    def stats(self) -> dict[str, int]:
        """Of the restore: pages_total, pages_prefetched, pages_background, faults_demand, faults_zero, ready_us, complete_us, fetch_us,
        apply_us, place_us, demand_woken, short_of_memory. What is missing counts as 0."""
        ...

    def working_set(self) -> bytes:
        """The pages that were touched first, in order, packed; empty when that is not told."""
        ...

    @property
    def placed_pages(self) -> int:
        """Pages of it that are back, of a dormant one by touches; 0 where the driver serves none."""
        ...

    def touched(self) -> bytes:
        """The pages that it touched while dormant, in order, packed; without those that made it wake."""
        ...

    @property
    def reclaimable_pages(self) -> int:
        """How many of those a reclaim may take; 0 where the driver has no such op."""
        ...

    def reclaim(
        self, pages_min: int = 1, pages_max: int = 0, cancel: native.CancelFlag | None = None
    ) -> tuple[dict[str, int], list[str]]:
        """(blocks) Takes those of them away again whose bytes are still what the file has; fewer than `pages_min`: none; at most
        `pages_max`, 0: all.
        Returns reclaimed_pages, changed_pages, tick_pages (touched again soon after the reclaim before this one: they stay),
        stopped_us; and what stayed, and why. Raises busy, traced, process_gone, all with nothing lost; cancelled when
        abandoned, and the sandbox is to be detached then. In a thread of its own, as `evict`."""
        ...

    def reclaimed(self) -> bytes:
        """What the last reclaim took and was not touched since, packed."""
        ...

    def detach(self) -> None:
        """(blocks) Lets go of the sandbox as it is; waits for its restore raise cancelled. It may be adopted after that."""
        ...


class Driver(Protocol):
    """How the memory of sandboxes is taken and given back. Calls block: not for the event loop's thread. `subject` is
    one that the driver's own `Subjects` made."""

    @property
    def subjects(self) -> type[Subjects]:
        """What its sandboxes are, a class attribute: subjects are made where the driver cannot run, too."""
        ...

    @property
    def name(self) -> str: ...
    @property
    def frees(self) -> bool:
        """Whether an eviction gives memory back. Where it does not, what it writes comes on top."""
        ...

    def capture(self, subject: Any, fork_sharers_max: int | None = None) -> native.MemoryImage:
        """What can be evicted. With `fork_sharers_max`, without pages that processes outside share, or more than so many of its
        own. Changes nothing; it may be called again, also for an op that then ends without an eviction. Raises
        process_gone, permission_denied, traced, limit_exceeded, unsupported."""
        ...

    def evict(
        self,
        subject: Any,
        image: native.MemoryImage,
        file: native.SandboxFile,
        bases: native.BaseSet,
        hold_frozen: bool = False,
        cancel: native.CancelFlag | None = None,
        sleep: Sleep = AWAKE_AT_ONCE,
    ) -> Handle:
        """Takes the pages of `image` away that are still as they are in the file, in a thread of its own: it may take without
        end (`Subject.held_up`). The file is journalled before: from the first page that goes `Subject.pages_out` must say
        so, also to an agent that starts after this one was killed. Raises cancelled, also when `cancel` is set meanwhile; what it
        raises once a page has gone makes the agent adopt the file."""
        ...

    def adopt(
        self, subject: Any, file: native.SandboxFile, bases: native.BaseSet, sleep: Sleep = AWAKE_AT_ONCE
    ) -> Handle:
        """A handle on what an agent before evicted, or this one after `detach`; a restore that was under way goes on. Raises
        process_gone; not_found, corrupt or lost when bytes are absent or wrong, by which the sandbox is lost; anything else is
        tried again later."""
        ...

    @property
    def event_fd(self) -> int:
        """Readable when take_events() has something; negative for a driver without events."""
        ...

    def take_events(self) -> list[tuple[str, str]]:
        """(path of the sandbox file, demand_woken | short_of_memory | lost | process_gone) since the last call; from the event
        loop's thread, it must not block."""
        ...

    def release_gone(self) -> None:
        """Lets go of what is still held of processes that ended after their sandbox was detached. Called every
        few seconds, from the event loop: it must not block."""
        ...

    def close(self) -> None:
        """The agent ends: sandboxes stay as they are, for the next one to adopt. Repeatable."""
        ...


class DriverClass(Protocol):
    """What a driver's entry in medes.plugins names: a class whose instances are Drivers."""

    @property
    def subjects(self) -> type[Subjects]: ...

    def missing(self) -> Mapping[str, str]:
        """What this machine lacks for it → how to get it; empty: it can run here. Blocks for milliseconds; tries on
        objects of its own, never on anybody's process."""
        ...

    def make(self, settings: AgentSettings) -> Driver:
        """The one instance of an agent, closed with it. Called where nothing is missing."""
        ...
