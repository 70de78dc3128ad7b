"""What stands for a node's machine in a simulation: programs with real bytes, which outlive the agents that run there."""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass, field

from medes import native

COMMON_RATIO = 0.75  # of a program's pages, which all instances of its function have alike
COMMON_KEPT_MAX = 4  # functions whose pages are not made up again: each takes as much as a program
WORDS_CHANGED = 4  # in each of the other pages, from one instance to the next


@functools.lru_cache(maxsize=COMMON_KEPT_MAX)
def _common(function: str, page_count: int) -> bytes:
    """What all instances of a function begin with."""
    return random.Random(f"function {function}").randbytes(page_count * native.PAGE_BYTES)


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
        pages = bytearray(_common(self.function, self.page_count))
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
