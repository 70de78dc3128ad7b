"""10 MB of temporaries a request, as numpy and the C library's allocator take and give them back: half in arrays, half in
small objects. Nothing of it is kept."""

import numpy as np

from medes.runtimes.instance.checked_state import CheckedState, digest

ARRAYS, ARRAY_BYTES = 10, 512 << 10
OBJECTS, OBJECT_BYTES = 16_384, 320

state = CheckedState("temporaries", buffer_bytes=4 << 20)


def handler(event, context):
    key = state.begin(event)
    seed = int(event["seed"])
    arrays = [np.full(ARRAY_BYTES // 8, seed + number, dtype=np.int64) for number in range(ARRAYS)]
    objects = [bytes([(seed + number) % 256]) * OBJECT_BYTES for number in range(OBJECTS)]
    result = {
        "arrays": int(sum(int(array.sum()) for array in arrays)),
        "objects": digest(b"".join(objects[::256])),
    }
    return state.finish(key, result)
