"""Generated foregrounds: people, plants, animals and things with complex outlines, as cut-outs.

Each is float32 ``(H, W, 4)``: display values and, last, the opacity, not premultiplied. What ends at the lower border
of its picture (a portrait at the chest, a branch, a fence) is meant to stand on the lower edge of a frame. Coordinates
as in `canvas`.
"""

from collections.abc import Callable

import numpy as np

from datasets_scripts.figures_animals import bird, cat
from datasets_scripts.figures_people import couple, portrait
from datasets_scripts.figures_plants import bouquet, branches, little_tree, potted_plant
from datasets_scripts.figures_things import bicycle, bottles, chair, fence

FIGURES: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "portrait": portrait,
    "potted_plant": potted_plant,
    "cat": cat,
    "bicycle": bicycle,
    "branches": branches,
    "couple": couple,
    "bottles": bottles,
    "fence": fence,
    "bird": bird,
    "bouquet": bouquet,
    "chair": chair,
    "little_tree": little_tree,
}


def draw_foreground(rng: np.random.Generator, figure: str) -> np.ndarray:
    """Draw a figure.

    Args:
        rng: source of chance.
        figure: one of `FIGURES`.

    Returns:
        (H, W, 4) float32, display values and opacity in [0, 1], not premultiplied.
    """
    rgba = np.clip(FIGURES[figure](rng), 0, 1)
    if rng.random() < 0.5:
        rgba = rgba[:, ::-1]
    return np.ascontiguousarray(rgba, dtype=np.float32)
