"""What the agent keeps of a sandbox and asks about it, whatever the sandbox is made of.

A driver names the class of its `Subjects`, of which an agent makes one; drivers that name the same class share it. It makes
a `Subject` of what Register says, and again, after a restart, of what the journal says.

Every method may be called from any thread, by several at a time, and again. Those marked (blocks) look at the
machine: they are never called by the event loop's thread, and should take milliseconds. What they raise says whether
trying again may help (`MedesError.transient`), as everywhere; process_gone alone is taken for the sandbox's end, and only
together with `gone()`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medes import native
from medes.errors import BusyError, PermissionDeniedError, UnsupportedError


@dataclass(frozen=True, slots=True)
class Asked:
    """What Register names a sandbox by: exactly one of them, within its bounds."""

    pids: tuple[int, ...] = ()
    cgroup: str = ""
    subject: str = ""  # of drivers whose sandboxes are no processes: what it means is theirs to say


class Subject(ABC):
    """One sandbox. Without the methods that are not abstract it is one that has no process, belongs to no user, has no limit
    of its own and is never held up."""

    sandbox_id: str
    name: str = ""  # `Asked.subject`, shown to who looks
    processes: tuple[int, ...] = ()  # the roots, shown to who looks

    # --- who it is -----------------------------------------------------------------------------------------
    @property
    @abstractmethod
    def parts(self) -> tuple[str, ...]:
        """What it is made of, for as long as it lives: no two sandboxes of a node have a part in common, and one that is
        registered again has the same. Each names itself to people and is nobody else's later: `pid 7, started at 9`."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """What `Subjects.from_json` makes it of, in the journal and in the sandbox file, beside the agent's own keys
        (medes.agent.sandboxes.sandbox.SandboxSpec), none of which it may use. It reads what its older versions wrote."""

    # --- whether it lives ----------------------------------------------------------------------------------
    @abstractmethod
    def gone(self) -> bool:
        """(blocks) Whether it has ended, for good. False where that cannot be told now: what is gone is forgotten, its file
        removed."""

    def ending(self) -> bool:
        """(blocks) Whether it has ended or is about to without being able to do anything about it."""
        return self.gone()

    def needs(self, file: native.SandboxFile) -> bool:
        """(blocks) Whether anything that lives has pages in this file of its dedup'd form. True where that cannot be told."""
        return not self.gone()

    def pages_out(self, file: native.SandboxFile | None) -> bool:
        """(blocks) Whether pages of it have gone, or may have, and are not back. `file`: its dedup'd form, whose page states
        the native drivers write; None: the file is lost. True where that cannot be told: it then never runs on."""
        if file is None:
            return True
        counts = file.page_state_counts
        return bool(counts.get("evicted", 0) or counts.get("evicting", 0))

    def held_up(self, file: native.SandboxFile) -> BusyError | None:
        """(blocks) What keeps an eviction of it from ending, if something does (a freezer): busy, with what ends it."""
        return None

    def learn(self, file: native.SandboxFile) -> None:
        """Takes over what a sandbox file says beside its meta. Called once, by an agent that starts."""
        return

    # --- what it holds -------------------------------------------------------------------------------------
    @abstractmethod
    def private_bytes(self) -> int:
        """(blocks) What its end would free. Raises process_gone."""

    def cpu_s(self) -> float | None:
        """(blocks) Processor time that what lives of it has used; None: that is not told. Less than before when
        part of it has ended."""
        return None

    def memory_room(self) -> int | None:
        """(blocks) Bytes that it may still take before it is killed for them; None: as many as there are."""
        return None

    # --- whose it is, and its end --------------------------------------------------------------------------
    def require_owner(self, uid: int) -> None:
        """(blocks) Raises permission_denied unless all of it is that user's."""
        raise PermissionDeniedError(f"cannot be told to be user {uid}'s", object=self.sandbox_id)

    @abstractmethod
    def end(self, owner: int | None, file: native.SandboxFile | None) -> None:
        """(blocks) Kills it with all that belongs to it; only what is the owner's, where there is one. `file`: its dedup'd form,
        with its handle still there. What is gone already is no error. Raises permission_denied."""


class Subjects(ABC):
    """Those of one kind on a node. Made without arguments, and cheaply: nothing is opened before a subject is made."""

    @abstractmethod
    def registered(self, sandbox_id: str, asked: Asked) -> Subject:
        """(blocks) What a caller asks for; it is not the agent's yet (`follow`). Raises invalid_argument, not_found,
        limit_exceeded, permission_denied."""

    @abstractmethod
    def from_json(self, sandbox_id: str, record: Mapping[str, Any]) -> Subject:
        """What `to_json` wrote, among other keys. It looks at nothing: what it is made of may be gone. Raises KeyError, TypeError
        or ValueError for what it did not write."""

    def admit(self, uid: int, asked: Asked, own: Sequence[Subject]) -> int:
        """(blocks) Lets a user who is not root register: private bytes of what is asked for. `own`: what the user has. Raises
        permission_denied unless all of it is the user's, already_exists where it is part of somebody else's sandbox."""
        raise PermissionDeniedError("sandboxes of this driver are registered by root", object=f"user {uid}")

    def follow(self, subject: Subject) -> None:
        """It is the agent's from now on, in place of one of the same id."""
        return

    def forget(self, sandbox_id: str) -> None:
        """It is the agent's no more. Nothing, for an unknown one."""
        return

    def look(self, subjects: Sequence[Subject]) -> list[Subject]:
        """(blocks) What has become of them: those whose `to_json` differs from what this told (or Register journalled) before.
        Called for all of a node every few seconds, and for one before its ops."""
        return []

    def carried(self, subjects: Sequence[Subject]) -> list[Mapping[int, int]]:
        """(blocks) Bytes that the connections of each have carried, by connection, none of which has a number that another
        one had. Empty where that is not told."""
        return [{} for _ in subjects]

    def place(self) -> str:
        """Names where what `to_json` says means what it says (a PID namespace); a file of another place waits for an agent
        there. Empty: everywhere, or it cannot be told."""
        return ""

    def close(self) -> None:
        """The agent ends. Repeatable."""
        return


class UnknownSubjects(Subjects):
    """Of a driver that is not installed (any more)."""

    def registered(self, sandbox_id: str, asked: Asked) -> Subject:
        raise UnsupportedError("its driver is not installed", object=sandbox_id)

    def from_json(self, sandbox_id: str, record: Mapping[str, Any]) -> Subject:
        return _Unknown(sandbox_id, record)


class _Unknown(Subject):
    """Lives, for all that is known; nothing of it is thrown away."""

    def __init__(self, sandbox_id: str, record: Mapping[str, Any]) -> None:
        self.sandbox_id = sandbox_id
        self._record = dict(record)

    @property
    def parts(self) -> tuple[str, ...]:
        return (f"sandbox {self.sandbox_id}",)

    def to_json(self) -> dict[str, Any]:
        return self._record

    def gone(self) -> bool:
        return False

    def pages_out(self, file: native.SandboxFile | None) -> bool:
        return True

    def private_bytes(self) -> int:
        raise UnsupportedError("its driver is not installed", object=self.sandbox_id)

    def end(self, owner: int | None, file: native.SandboxFile | None) -> None:
        raise UnsupportedError("its driver is not installed", object=self.sandbox_id)
