"""Whose base store this is: what tells an agent from another that goes by the same name.

An identity is STORE.PLACE. STORE is made at the first start and journalled. PLACE follows from the machine's boot and the
state folder itself: an agent that is started again there has the same, and a copy of the folder (a cloned machine, a
restored volume) has another, as has the same folder after a reboot, when the shared memory is gone.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from medes.agent.journal import records
from medes.agent.journal.journal_writer import JournalWriter
from medes.chance import Chance
from medes.errors import MedesError

log = logging.getLogger(__name__)

STORE_BYTES = 8
PLACE_CHARS = 16
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


async def store_identity(journal: JournalWriter, state_dir: Path, chance: Chance) -> str:
    """This agent's; made and journalled where there is none."""
    store = str(journal.state.node.get("store", ""))
    if len(store) != 2 * STORE_BYTES or not store.isalnum():
        store = chance.hex(STORE_BYTES)
        try:
            await journal.write(records.node(store=store), sync=True)
        except MedesError as error:  # a full disk must not keep an agent from its sandboxes
            log.warning("the store's identity is not kept yet: %s", error)
    return f"{store}.{_place(state_dir)}"


def _place(folder: Path) -> str:
    try:
        boot = BOOT_ID.read_text().strip()
    except OSError:
        boot = ""  # no /proc/sys: a copy on the same machine is still told apart
    info = folder.stat()
    return hashlib.sha256(f"{boot} {info.st_dev} {info.st_ino}".encode()).hexdigest()[:PLACE_CHARS]


def same_store(one: str, other: str) -> bool:
    """Whether two identities are of one store, wherever it is now; what is not known is no other."""
    return not one or not other or one.partition(".")[0] == other.partition(".")[0]
