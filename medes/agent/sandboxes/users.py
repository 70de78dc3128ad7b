"""What users other than root may do through the user socket: to sandboxes of their own processes, within bounds.

A user's sandbox has an id that begins with `uid-N.`, which nobody else may give: whose it is outlives the agent with
the id, in the journal and in the sandbox file. Clients neither send nor see that part.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medes.errors import BusyError, InvalidArgumentError, PermissionDeniedError

_OWNED = re.compile(r"uid-(0|[1-9][0-9]{0,9})\.")


def owner_of(sandbox_id: str) -> int | None:
    """The user whose sandbox an id says it is; None: one that was registered over the main socket."""
    found = _OWNED.match(sandbox_id)
    return int(found[1]) if found else None


def prefix_of(uid: int) -> str:
    """What the ids of a user's sandboxes begin with."""
    return f"uid-{uid}."


def domain_of(uid: int, node_id: str) -> str:
    """The dedup domain of a user's sandboxes: a uid means the same person on its own node only."""
    return f"uid-{uid}.{node_id}"


def refuse_reserved(sandbox_id: str) -> None:
    """Raises invalid_argument for an id that would say that a sandbox is a user's."""
    if owner_of(sandbox_id) is not None:
        raise InvalidArgumentError(
            "ids that begin with uid-NUMBER. are those of users", object=sandbox_id, hint="choose another id"
        )


def require_hook_of(uid: int, hook_address: str) -> None:
    """Raises permission_denied for a hook that is no socket of the user's. Who listens there is asked again at each
    call."""
    path = Path(hook_address.removeprefix("unix:"))
    try:
        info = path.lstat()
    except OSError as error:
        raise PermissionDeniedError(
            f"not a socket of user {uid}: {error.strerror}", object=hook_address
        ) from error
    if info.st_uid != uid or not path.is_socket():
        raise PermissionDeniedError(f"not a socket of user {uid}", object=hook_address)


class CallsInFlight:
    """How many calls each user has under way."""

    def __init__(self, each_max: int) -> None:
        self._each_max = each_max
        self._now: Counter[int] = Counter()

    @contextmanager
    def one(self, uid: int) -> Iterator[None]:
        """Counts a call. Raises busy when the user has too many already."""
        if self._now[uid] >= self._each_max:
            raise BusyError(f"user {uid} has {self._each_max} calls under way", object=f"uid {uid}")
        self._now[uid] += 1
        try:
            yield
        finally:
            self._now[uid] -= 1
            if not self._now[uid]:
                del self._now[uid]
