"""What an agent asks of a lifecycle policy: when to dedup and when to purge which sandbox.

A policy hears what happens (`observe`), is shown the node (`decide`) and answers with steps. It has no clock, does no I/O
and starts no thread: times come with what it is told, so that a simulation gets the same answers as an agent. All calls
come from one thread and return at once: a node has thousands of sandboxes. `decide` runs when something was observed, when
something is due by `outlook`, while memory is short (four times a second at most), and every ten seconds.
medes.plugins lists the policies; the setting `policy` chooses one; tests/conformance/test_policies.py holds all to this.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from medes.config import AgentSettings
from medes.policy.keep_alive import Action, Periods
from medes.types import SandboxState


class Happening(enum.Enum):
    """What a policy is told of."""

    REQUEST_BEGUN = "request_begun"
    REQUEST_ENDED = "request_ended"
    STATE = "state"  # the sandbox is in `state` from now on; PURGED: it is forgotten
    DEDUP = "dedup"  # an op ended well, after `seconds`
    RESTORE = "restore"  # the same; the request waited for `seconds`


@dataclass(frozen=True, slots=True)
class Event:
    """`at_s`: seconds of the clock that NodeView.now_s is of. `kept_bytes`: of a dedup, what the sandbox still holds."""

    at_s: float
    what: Happening
    sandbox_id: str
    function: str
    state: SandboxState
    seconds: float = 0.0
    kept_bytes: int = 0


@dataclass(frozen=True, slots=True)
class View:
    """A sandbox as the decision sees it. `age_s`: how long it has been in its state; a warm one whose runtime reports no
    requests, since it was last seen to work."""

    sandbox_id: str
    state: SandboxState
    age_s: float
    periods: Periods
    disabled: bool = False
    # Times in a row that the sandbox woke by its own fault without a request (a timer inside it), and failed dedup ops
    # in a row: without longer pauses dedup and wake would follow each other for ever.
    idle_wakes: int = 0
    dedup_failures: int = 0
    warm_bytes: int = 0
    # Whether a purge ends the processes. Without it nobody purges but the runtime: it would give all the memory back and
    # forget a sandbox that its runtime still counts on.
    purge_kills: bool = True
    function: str = ""


@dataclass(frozen=True, slots=True)
class NodeView:
    """The node: its sandboxes without those that an op has hold of. `pressure`: why memory is short; empty: it is not.
    `ops_free`: how many dedup ops pressure may start now."""

    now_s: float
    sandboxes: Sequence[View]
    pressure: str = ""
    ops_free: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """What to do now with a sandbox of the view, DEDUP (a warm one) or PURGE (one with `purge_kills`), and why: the
    reason is shown to operators."""

    sandbox_id: str
    action: Action
    reason: str


@dataclass(frozen=True, slots=True)
class Outlook:
    """What comes next of itself, in how many seconds, and why. NONE: nothing, as things are."""

    action: Action
    in_s: float
    why: str


class Policy(Protocol):
    """Deterministic: the same calls get the same answers."""

    def observe(self, event: Event) -> None: ...

    def decide(self, node: NodeView) -> Sequence[Step]:
        """At most one step a sandbox. None for a disabled one, whatever the pressure."""
        ...

    def outlook(self, view: View) -> Outlook:
        """What `decide` would do of itself if nothing happens: it is asked by then, and `medes sandbox explain` shows it.
        Changes nothing."""
        ...


class PolicyClass(Protocol):
    """What a policy's entry in medes.plugins names: a class whose instances are Policies."""

    def make(self, settings: AgentSettings) -> Policy:
        """The one instance of an agent."""
        ...
