"""Drawn foregrounds and backgrounds, from what the procedural scenes are made of."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
from PIL import Image

from datasets_scripts.scenes.generator import SceneGenerator
from datasets_scripts.scenes.materials import Materials, Sprite
from datasets_scripts.scenes.townscape import CAR_M, vehicle_views

FOREGROUNDS = {
    "half_figure": 1, "plant": 2, "bicycle": 1, "foliage": 3, "figure": 3, "fence": 1, "bottle": 4, "tree": 1,
    "car": 1, "blob": 4, "sign": 2,
}  # fmt: skip
"""Families of drawn things, and how many of one stand beside each other at most."""
BACKGROUNDS = ("street", "landscape", "street", "ground", "street", "room")
_HEIGHT_PX = 768
_VIEW_PX = 800  # larger views would take two gigabytes
_LARGEST_SUBJECT = 0.15  # of the background's own, as a share of it
_LAMPS = ((1.0, 0.85, 0.6), (1.0, 0.7, 0.35), (0.9, 0.95, 1.0), (0.95, 0.4, 0.3), (0.5, 0.85, 1.0))


@lru_cache(maxsize=1)
def _materials(seed: int) -> Materials:
    return Materials([], [], _HEIGHT_PX, seed, detail=4)


def draw_foreground(rng: np.random.Generator, family: str, seed: int) -> Sprite:
    """Draw one to several things of a family beside each other.

    Args:
        rng: source of chance.
        family: a key of `FOREGROUNDS`.
        seed: of the drawings that are chosen from.

    Returns:
        All as one thing, cropped.
    """
    parts = []
    for _ in range(int(rng.integers(FOREGROUNDS[family])) + 1):
        sprite = _materials(seed).drawn(rng, (family,))
        rgba = sprite.rgba
        if family in CAR_M:
            rgba = vehicle_views(rgba, family)[str(rng.choice(("side", "front", "rear")))]
        part, tall = Image.fromarray(np.ascontiguousarray(rgba)), rng.uniform(0.8, 1.0) * _HEIGHT_PX
        parts.append(part.resize((max(1, round(part.width * tall / part.height)), round(tall))))
    lefts = np.cumsum([0] + [int(rng.uniform(0.6, 1.05) * part.width) for part in parts[:-1]]).tolist()
    width = max(left + part.width for left, part in zip(lefts, parts, strict=True))
    canvas = Image.new("RGBA", (width, max(part.height for part in parts)))
    for left, part in zip(lefts, parts, strict=True):
        canvas.alpha_composite(part, (left, canvas.height - part.height))
    return replace(sprite, rgba=np.asarray(canvas))


def draw_background(rng: np.random.Generator, kind: str, side_px: int) -> np.ndarray:
    """Draw a view: a procedural scene without a large subject, some at night, some with lamps.

    Args:
        rng: source of chance.
        kind: one of `BACKGROUNDS`.
        side_px: of the square picture.

    Returns:
        (H, W, 3) float32, display values, 0 or more; lamps are above 1.
    """
    view_px = min(side_px, _VIEW_PX)
    generator = SceneGenerator((view_px, view_px), seed=int(rng.integers(2**31)), detail=2)
    scenes = (generator.generate(index, kind) for index in itertools.count())
    view = next(scene.image for scene in scenes if scene.subject_mask.mean() < _LARGEST_SUBJECT)
    bands = [
        Image.fromarray(band).resize((side_px, side_px), Image.Resampling.BICUBIC) for band in np.moveaxis(view, 2, 0)
    ]
    rgb = np.clip(np.dstack(bands), 0, 1)
    is_night = rng.random() < 0.35
    if is_night:
        gain = rng.uniform(0.45, 0.7) * rng.uniform((0.7, 0.8, 0.9), (1.1, 1.0, 1.2))
        rgb = (rgb**1.2 * gain).astype(np.float32)
    for _ in range(int(rng.integers(1, 5) if is_night else rng.integers(2))):  # strings of lamps
        (left, right), tops = rng.uniform((-0.2, 0.5), (0.5, 1.2)), rng.uniform(0, 0.6, 2)
        sag, colours = rng.uniform(0, 0.25), [_LAMPS[n] for n in rng.integers(len(_LAMPS), size=3)]
        radius_px, gain = side_px / 1024 * rng.uniform(1.5, 5.0), rng.uniform(2, 12)
        for number, t in enumerate(np.linspace(0, 1, int(rng.integers(6, 26)))):
            x, y = left + (right - left) * t, tops[0] + (tops[1] - tops[0]) * t + 4 * sag * t * (1 - t)
            _add_lamp(rgb, x * side_px, y * side_px, radius_px, colours[number % 3], gain)
    return rgb


def _add_lamp(
    rgb: np.ndarray, x_px: float, y_px: float, radius_px: float, colour: Sequence[float], gain: float
) -> None:
    """Put a light source ``gain`` times as bright as white, in linear light, into a picture (H, W, 3), in place."""
    reach = int(8 * radius_px) + 2
    rows, columns = (slice(max(int(middle) - reach, 0), max(int(middle) + reach, 0)) for middle in (y_px, x_px))
    part = rgb[rows, columns]
    y, x = np.ogrid[rows.start : rows.start + part.shape[0], columns.start : columns.start + part.shape[1]]
    distance = np.hypot(y - y_px, x - x_px).astype(np.float32)[..., None]
    part += 0.25 * np.exp(-2 * (distance / (3.2 * radius_px)) ** 2) * np.asarray(colour, np.float32)
    bright = np.asarray(colour, np.float32) * np.float32(gain ** (1 / 2.2))
    part += np.clip(radius_px - distance + 0.5, 0, 1) * (bright - part)
