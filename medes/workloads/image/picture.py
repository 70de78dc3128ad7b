"""Flip, rotate, filter, grey and shrink one picture, as FunctionBench's image_processing; keeps thumbnails."""

import io
import math
import random
from collections import OrderedDict

from PIL import Image, ImageDraw, ImageFilter, ImageOps

from medes.runtimes.instance.checked_state import CheckedState, digest

THUMBNAILS_MAX = 16
BACKDROP_SIDE = 1400

Image.init()
state = CheckedState("image", buffer_bytes=1 << 20)
thumbnails: OrderedDict[str, Image.Image] = OrderedDict()


def _backdrop() -> Image.Image:
    """A sky over hills, drawn once and kept: what pictures are cut from."""
    picture = Image.linear_gradient("L").resize((BACKDROP_SIDE, BACKDROP_SIDE))
    picture = ImageOps.colorize(picture, (40, 90, 200), (240, 220, 180))
    draw = ImageDraw.Draw(picture)
    for layer in range(6):
        height = BACKDROP_SIDE * (0.45 + 0.09 * layer)
        line = [
            (x, height + 60 * math.sin(x / (70 + 30 * layer) + layer * 1.7))
            for x in range(0, BACKDROP_SIDE + 8, 8)
        ]
        draw.polygon(
            [(0, BACKDROP_SIDE), *line, (BACKDROP_SIDE, BACKDROP_SIDE)], fill=(20, 140 - 18 * layer, 60)
        )
    return picture


backdrop = _backdrop()


def _source(width: int, height: int, seed: int) -> Image.Image:
    generator = random.Random(seed)
    left = generator.randrange(BACKDROP_SIDE - width)
    top = generator.randrange(BACKDROP_SIDE - height)
    picture = backdrop.crop((left, top, left + width, top + height))
    draw = ImageDraw.Draw(picture)
    for _ in range(24):
        x, y, radius = generator.randrange(width), generator.randrange(height), generator.randrange(4, 40)
        colour = tuple(generator.randrange(256) for _ in range(3))
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    return picture


def handler(event, context):
    key = state.begin(event)
    source = _source(min(int(event["width"]), 1024), min(int(event["height"]), 1024), int(event["seed"]))
    steps = {
        "flip": source.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        "rotate": source.transpose(Image.Transpose.ROTATE_90),
        "blur": source.filter(ImageFilter.BLUR),
        "contour": source.filter(ImageFilter.CONTOUR),
        "sharpen": source.filter(ImageFilter.SHARPEN),
        "grey": ImageOps.grayscale(source),
    }
    small = source.copy()
    small.thumbnail((128, 128))
    known = thumbnails.get(key)
    if known is not None and known.tobytes() != small.tobytes():
        raise RuntimeError("the kept thumbnail differs")
    thumbnails[key] = small
    while len(thumbnails) > THUMBNAILS_MAX:
        thumbnails.popitem(last=False)
    encoded = io.BytesIO()
    steps["sharpen"].save(encoded, "JPEG", quality=85)
    result = {name: digest(picture.tobytes()) for name, picture in steps.items()}
    return state.finish(key, {**result, "jpeg": digest(encoded.getvalue()), "bytes": len(encoded.getvalue())})
