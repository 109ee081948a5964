"""Drawings of what towns are made of, each of one true size: houses whose windows tell the distance.

As in `drawing`, a callable delivers textures, and a thing comes back as float32 ``(h, w, 4)`` of 0 to 255. These
things are upright and are not bent; their size in metres is that of their family.
"""

import numpy as np

from bokehdepth.rendering.drawing import Shape, Tile, covered, paint_over, random_colour

STOREY_M = 3.0
"""From floor to floor, in all houses."""
_PX_PER_M = 20


def _muted(rng: np.random.Generator, low: float = 0.3, high: float = 0.9) -> np.ndarray:
    """Draw the colour of plaster, stone or paint, 0 to 255: float32 ``(3,)``."""
    grey = rng.uniform(low, high)
    return 255 * (0.7 * grey + 0.3 * random_colour(rng)).astype(np.float32)


def facade(rng: np.random.Generator, tile: Tile, width_m: float, storeys: int, has_door: bool) -> np.ndarray:
    """Draw a front with a window for each bay of each storey: float32 ``(h, w, 4)``, opaque.

    Windows are 0.9 to 1.5 m wide and 1.2 to 1.8 m high; a bay is 2 to 3.4 m.
    """
    tall, wide = round(storeys * STOREY_M * _PX_PER_M), round(width_m * _PX_PER_M)
    wall = covered(tile(rng), np.ones((tall, wide), dtype=np.float32))
    colour = _muted(rng)
    keep = rng.uniform(0.05, 0.5)
    wall[..., :3] = keep * wall[..., :3] + (1 - keep) * colour
    bays = max(1, round(width_m / rng.uniform(2.2, 3.2)))
    pitch = wide / bays
    window_w, window_h = rng.uniform(0.9, 1.5) * _PX_PER_M, rng.uniform(1.2, 1.8) * _PX_PER_M
    sill = rng.uniform(0.75, 0.95) * _PX_PER_M
    frame, glass = _muted(rng, 0.3, 1.0), _muted(rng, 0.1, 0.45)
    door = int(rng.integers(bays)) if has_door else -1
    has_bars = rng.random() < 0.6
    for storey in range(storeys):
        floor = tall - storey * STOREY_M * _PX_PER_M
        if storey and rng.random() < 0.3:
            _fill(wall, floor - 3, floor, 0, wide, 0.8 * colour)
        for bay in range(bays):
            middle = (bay + 0.5) * pitch
            if storey == 0 and bay == door:
                _fill(wall, floor - 2.1 * _PX_PER_M, floor, middle - 0.5 * _PX_PER_M, middle + 0.5 * _PX_PER_M, frame)
                continue
            top, low = floor - sill - window_h, floor - sill
            left, right = middle - window_w / 2, middle + window_w / 2
            _fill(wall, top - 2, low + 2, left - 2, right + 2, frame)
            _fill(wall, top, low, left, right, glass * rng.uniform(0.6, 1.5))
            if has_bars:
                _fill(wall, top, low, middle - 1, middle + 1, frame)
                _fill(wall, top + 0.3 * window_h - 1, top + 0.3 * window_h + 1, left, right, frame)
    return wall


def _fill(picture: np.ndarray, top: float, low: float, left: float, right: float, colour: np.ndarray) -> None:
    """Fill a rectangle, in place; numbers in pixels."""
    y0, y1, x0, x1 = (max(round(value), 0) for value in (top, low, left, right))
    picture[y0:y1, x0:x1, :3] = colour


def _house(rng: np.random.Generator, tile: Tile) -> np.ndarray:
    """Draw a house of two storeys with a roof, 8.5 m high."""
    width_m = rng.uniform(6.0, 14.0)
    front = facade(rng, tile, width_m, 2, has_door=True)
    tall, wide = round(8.5 * _PX_PER_M), front.shape[1]
    eaves = tall - front.shape[0]
    y, x = np.arange(eaves, dtype=np.float32)[:, None] / eaves, np.linspace(-1, 1, wide, dtype=np.float32)[None]
    ridge = rng.choice([0.0, 0.6, 0.92])  # a gable, hips, or the long side
    alpha = np.clip((ridge + (1 - ridge) * y - np.abs(x)) * wide / 2 + 0.5, 0, 1)
    roof = covered(tile(rng), alpha)
    colour = np.array([(130, 60, 45), (70, 70, 75), (95, 75, 60)][rng.integers(3)]) * rng.uniform(0.6, 1.2)
    roof[..., :3] = 0.35 * roof[..., :3] + 0.65 * colour
    house = np.concatenate([roof, front])
    if rng.random() < 0.5:
        column = int(wide * rng.uniform(0.3, 0.65))
        chimney = np.zeros(house.shape[:2], dtype=np.float32)
        chimney[: eaves // 2, column : column + 14] = 1
        paint_over(house, chimney, _muted(rng, 0.2, 0.5))
    return house


def _block(rng: np.random.Generator, tile: Tile) -> np.ndarray:
    """Draw a block of five storeys with a flat roof, 15.5 m high."""
    front = facade(rng, tile, rng.uniform(10.0, 22.0), 5, has_door=True)
    rim = np.full((_PX_PER_M // 2, front.shape[1], 4), 255, dtype=np.float32)
    rim[..., :3] = _muted(rng, 0.2, 0.7)
    return np.concatenate([rim, front])


FAMILIES: dict[str, tuple[Shape, tuple[float, float], tuple[str, ...]]] = {
    "house": (_house, (8.5, 8.5), ()),
    "block": (_block, (15.5, 15.5), ()),
}
