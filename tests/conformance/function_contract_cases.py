"""A function for each contract, which does what an event asks for. What a contract of one's own needs to run
test_function_contracts.py over it is one more of these classes, named in the environment:
`MEDES_FUNCTION_CONTRACT_CASE=my_package.conformance:HttpCase`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from tests.conformance.named_case import named_case
from tests.support import lines_contract

CASE_VARIABLE = "MEDES_FUNCTION_CONTRACT_CASE"


class ContractCase(ABC):
    """How its functions are written. Made without arguments.

    The function answers `{"event": what it was given, "calls": requests of this instance that it answered, this one
    included, "seen": phases whose hooks ran, "env": the variable CASE}`, after it has done what the event's keys ask for, in
    this order: `note` (a path: append a line), `die` (end the process at once), `sleep` (seconds), `raise` (fail with that
    message), `spoil` (from now on hooks fail, with the message "spoilt").
    """

    contract: ClassVar[str]  # its name in medes.plugins
    module: ClassVar[str] = ""  # its text, of one that is installed for the test only
    entry: ClassVar[str] = ""  # the class in it
    hooks: ClassVar[bool] = True  # whether functions can have hooks
    event_bytes_max: ClassVar[int] = 0  # larger ones are refused; 0: none is
    handler: ClassVar[str]
    bad_handler: ClassVar[str]  # one that `check` refuses

    @abstractmethod
    def write(self, folder: Path, *, loads: bool) -> None:
        """Writes the function's code; where `loads` is false, some that cannot be loaded."""


class NativeCase(ContractCase):
    contract = "native"
    event_bytes_max = 12 << 20
    handler = "code:handler"
    bad_handler = "code.handler"

    def write(self, folder: Path, *, loads: bool) -> None:
        (folder / "code.py").write_text(COMMON + NATIVE if loads else "import nothing_of_this_name\n")


class LinesCase(ContractCase):
    """Nothing of the project knows of it."""

    contract = "lines"
    module = Path(lines_contract.__file__).read_text()
    entry = "LinesContract"
    event_bytes_max = lines_contract.LINE_BYTES_MAX
    handler = "code.py"
    bad_handler = "nowhere.py"

    def write(self, folder: Path, *, loads: bool) -> None:
        (folder / "code.py").write_text(COMMON + LINES if loads else "import nothing_of_this_name\n")


COMMON = """
import os, random, time
weight = [random.Random(n).randbytes(4000) for n in range(500)]
state = {"calls": 0, "seen": [], "spoilt": False}

def hook(phase):
    if state["spoilt"]:
        raise RuntimeError("spoilt")
    state["seen"].append(phase)

def answer(event):
    if "note" in event:
        with open(event["note"], "a") as file:
            print("run", file=file)
    if "die" in event:
        os._exit(3)
    time.sleep(event.get("sleep", 0))
    if "raise" in event:
        raise ValueError(event["raise"])
    state["spoilt"] = state["spoilt"] or "spoil" in event
    state["calls"] += 1
    return {"event": event, "calls": state["calls"], "seen": state["seen"], "env": os.environ.get("CASE")}
"""

NATIVE = """
from medes.runtimes.instance.hooks import register_after_restore, register_before_snapshot
register_before_snapshot(hook, "before_snapshot")
register_after_restore(hook, "after_restore")
def handler(event, context):
    return answer(event)
"""

LINES = """
hooks = {phase: [lambda phase=phase: hook(phase)] for phase in ("before_snapshot", "after_restore")}
handle = answer
"""


def cases() -> list[type[ContractCase]]:
    return [NativeCase, LinesCase, *named_case(CASE_VARIABLE)]
