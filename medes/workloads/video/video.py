"""Renders moving frames, turns them grey and encodes them as keyframe and differences; keeps a frame buffer."""

import itertools
import zlib

import numpy as np

from medes.runtimes.instance.checked_state import CheckedState, digest

HEIGHT, WIDTH = 240, 320
KEPT_FRAMES = 256
GREY = np.array([0.299, 0.587, 0.114], dtype=np.float32)

state = CheckedState("video", buffer_bytes=1 << 20)
rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)


def render(number: int, seed: int) -> np.ndarray:
    """One RGB frame: a gradient with two discs that move with the frame number."""
    frame = np.empty((HEIGHT, WIDTH, 3), dtype=np.uint8)
    frame[..., 0] = (columns * 255 / WIDTH + number).astype(np.uint8)
    frame[..., 1] = (rows * 255 / HEIGHT).astype(np.uint8)
    frame[..., 2] = 64 + seed % 64
    for disc in range(2):
        x = (40 + 60 * disc + (3 + disc) * number + 11 * seed) % WIDTH
        y = (30 + 90 * disc + (2 + disc) * number) % HEIGHT
        frame[(rows - y) ** 2 + (columns - x) ** 2 < 400] = (255 - 100 * disc, 30, 80 * disc)
    return frame


# The frames of the reference clip that incoming ones are compared with.
reference = np.stack([(render(number, 0) @ GREY).astype(np.uint8) for number in range(KEPT_FRAMES)])
reference_digest = digest(reference[::8].tobytes())


def encode(greys: list[np.ndarray]) -> bytes:
    """Keyframe, then differences to the frame before, deflated."""
    parts = [greys[0].tobytes()]
    parts += [(after - before).tobytes() for before, after in itertools.pairwise(greys)]
    return zlib.compress(b"".join(parts), 1)


def handler(event, context):
    key = state.begin(event)
    count, seed = min(int(event["frames"]), KEPT_FRAMES), int(event["seed"])
    greys = [(render(number, seed) @ GREY).astype(np.uint8) for number in range(count)]
    encoded = encode(greys)
    motion = [int((np.abs(grey.astype(np.int16) - reference[n]) > 8).sum()) for n, grey in enumerate(greys)]
    if digest(reference[::8].tobytes()) != reference_digest:
        raise RuntimeError("the kept frames changed between requests")
    return state.finish(key, {"encoded": digest(encoded), "bytes": len(encoded), "motion": motion})
