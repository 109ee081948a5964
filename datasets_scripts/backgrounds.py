"""Generated backgrounds: views indoors and outdoors, with horizons, buildings, foliage and lights.

Each is float32 ``(H, W, 3)`` of display values; lamps and glints are above 1. Coordinates as in `canvas`.
"""

from collections.abc import Callable

import numpy as np

from datasets_scripts.views_nature import forest, garden_wall, meadow, mountains, seaside
from datasets_scripts.views_town import cafe, room, street

VIEWS: dict[str, Callable[[np.random.Generator, tuple[int, int]], np.ndarray]] = {
    "street": street,
    "meadow": meadow,
    "cafe": cafe,
    "forest": forest,
    "room": room,
    "seaside": seaside,
    "garden_wall": garden_wall,
    "mountains": mountains,
}


def draw_background(rng: np.random.Generator, view: str, size_px: tuple[int, int]) -> np.ndarray:
    """Draw a view.

    Args:
        rng: source of chance.
        view: one of `VIEWS`.
        size_px: (H, W).

    Returns:
        (H, W, 3) float32, display values, 0 or more.
    """
    rgb = VIEWS[view](rng, size_px)
    exposure = rng.uniform(0.88, 1.08)
    return np.maximum(rgb * exposure, 0).astype(np.float32)
