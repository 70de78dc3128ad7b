"""What stands for a node's machine in a simulation: programs with real bytes, which outlive the agents that run there."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from medes import native

COMMON_RATIO = 0.75  # of a program's pages, which all instances of its function have alike
WORDS_CHANGED = 4  # in each of the other pages, from one instance to the next


@dataclass(slots=True)
class Program:
    """One instance of a function. Its bytes follow from its names and its age, as if it had computed them."""

    name: str
    function: str
    page_count: int
    living: bool = True
    out: bool = False  # its pages have gone, and are not back
    requests: int = 0  # each has changed a page

    def contents(self) -> bytes:
        """`page_count` pages."""
        pages = bytearray(
            random.Random(f"function {self.function}").randbytes(self.page_count * native.PAGE_BYTES)
        )
        own = random.Random(f"instance {self.name}")
        for page in range(int(self.page_count * COMMON_RATIO), self.page_count):
            self._scribble(pages, page, own)
        for request in range(self.requests):
            changes = random.Random(f"request {self.name} {request}")
            self._scribble(pages, changes.randrange(self.page_count), changes)
        return bytes(pages)

    @staticmethod
    def _scribble(pages: bytearray, page: int, chance: random.Random) -> None:
        for _ in range(WORDS_CHANGED):
            at = page * native.PAGE_BYTES + 8 * chance.randrange(native.PAGE_BYTES // 8)
            pages[at : at + 8] = chance.randbytes(8)


@dataclass(slots=True)
class Machine:
    """The programs of one node, by name."""

    programs: dict[str, Program] = field(default_factory=dict)

    def run(self, name: str, function: str, page_count: int) -> Program:
        program = self.programs[name] = Program(name, function, page_count)
        return program
