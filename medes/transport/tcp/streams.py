"""How many TCP connections carry one domain's pages from one peer."""

from __future__ import annotations

STREAMS_AUTOMATIC_MAX = 4
PROCESSORS_PER_STREAM = 4


def automatic_streams(processors: int) -> int:
    """One until eight processors, then one more for every four, at most four.

    A stream keeps a processor busy on either side while it is full, and one alone carries several GB/s: more of them
    pay where processors are idle meanwhile. On few they only take turns.
    """
    return max(1, min(STREAMS_AUTOMATIC_MAX, processors // PROCESSORS_PER_STREAM))
