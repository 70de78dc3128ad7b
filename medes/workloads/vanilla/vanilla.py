"""sin, cos and square root in a loop, remembered in a table, as FunctionBench's float_operation."""

import math

from medes.runtimes.instance.checked_state import CheckedState

TABLE_ENTRIES = 120_000

state = CheckedState("vanilla", buffer_bytes=1 << 20)
table = {number: math.sqrt(number) for number in range(TABLE_ENTRIES)}


def handler(event, context):
    key = state.begin(event)
    seed = int(event["seed"])
    total = 0.0
    for step in range(int(event["n"])):
        number = (step * 7919 + seed * 104_729) % TABLE_ENTRIES
        total += math.sin(number) * math.cos(number) + table[number]
    return state.finish(key, {"total": total, "entries": len(table)})
