"""A folder belongs to one agent at a time: a lock file in it, held while the agent lives, that says who holds it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from dataclasses import dataclass
from pathlib import Path

from medes.errors import AlreadyExistsError, IoError
from medes.folders import open_private

LOCK_NAME = "lock"  # in shm_dir
_OWNER_BYTES_MAX = 4096


@dataclass(frozen=True, slots=True)
class Owner:
    """What the lock file tells those who find it locked."""

    node_id: str = ""
    pid: int = 0
    state_dir: str = ""

    def text(self) -> str:
        """`another agent (node a, pid 17, state_dir /s)`, as far as it is known."""
        known = [
            f"{name} {value}"
            for name, value in (("node", self.node_id), ("pid", self.pid), ("state_dir", self.state_dir))
            if value
        ]
        return f"another agent ({', '.join(known)})" if known else "another agent"


class FolderLock:
    """Holds `path` locked until `close`, or until the process ends, however it ends."""

    def __init__(self, path: Path, what: str, owner: Owner | None = None) -> None:
        """`what` names the folder's setting. Raises already_exists when another agent holds it, io, permission_denied."""
        self._fd = open_private(path, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = _owner(self._fd)
            self.close()
            hint = f"stop it, or give this one a {what} of its own"
            raise AlreadyExistsError(
                f"{holder.text()} uses this {what}", object=str(path.parent), hint=hint
            ) from error
        except OSError as error:
            self.close()
            raise IoError(str(error), object=str(path)) from error
        if owner is not None:
            self._tell(owner)

    def _tell(self, owner: Owner) -> None:
        """For the text of a refusal only: a full disk must not keep the agent from its sandboxes."""
        text = json.dumps({"node_id": owner.node_id, "pid": owner.pid, "state_dir": owner.state_dir})
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, text.encode(), 0)

    def close(self) -> None:
        """Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _owner(fd: int) -> Owner:
    try:
        found = json.loads(os.pread(fd, _OWNER_BYTES_MAX, 0))
        return Owner(str(found["node_id"]), int(found["pid"]), str(found["state_dir"]))
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return Owner()
