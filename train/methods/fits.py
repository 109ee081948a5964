"""What a guess that sees no photo can reach: the smallest mean AbsRel over the evaluated photos' own true depth.

All that counts for such a guess is which depths each height of a picture has, so the truth is read once into a table.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize

from bokehdepth.errors import InputError
from train.sources import Source

BANDS, STEPS = 64, 4000
NEAREST_M, FARTHEST_M = 0.01, 1000.0


def truth_table(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """How much of the mean over pictures each depth has at each height.

    Args:
        source: samples with true depth.

    Returns:
        float64 `(BANDS, STEPS)`, share of the pictures' pixels, each picture counting the same, bands from the top;
        and the depths of its columns, metres `(STEPS,)`.

    Raises:
        InputError: no sample has a depth.
    """
    edges = np.log(NEAREST_M), np.log(FARTHEST_M)
    table = np.zeros(BANDS * STEPS)
    for sample in source:
        if sample.depth_m is None or not np.isfinite(sample.depth_m).any():
            continue
        rows, columns = np.nonzero(np.isfinite(sample.depth_m))
        share = (np.log(sample.depth_m[rows, columns]) - edges[0]) / (edges[1] - edges[0])
        step = np.clip((share * STEPS).astype(int), 0, STEPS - 1)
        band = rows * BANDS // len(sample.depth_m)
        table += np.bincount(band * STEPS + step, minlength=len(table)) / len(rows)
    if not table.any():
        raise InputError("`source` must have true depth to fit to, got none.")
    middles = np.exp(edges[0] + (np.arange(STEPS) + 0.5) / STEPS * (edges[1] - edges[0]))
    return table.reshape(BANDS, STEPS) / table.sum(), middles


def best_constant(source: Source) -> float:
    """Depth in metres with the smallest mean AbsRel: the median of all depths, each weighted by its inverse."""
    table, depth_m = truth_table(source)
    weight = np.cumsum(table.sum(axis=0) / depth_m)
    return float(depth_m[np.searchsorted(weight, weight[-1] / 2)])


def best_line(source: Source, least_dpt: float) -> tuple[float, float]:
    """Disparity at the upper and the lower edge whose line over the height has the smallest mean AbsRel.

    Args:
        source: samples with true depth.
        least_dpt: the line is cut off below it.

    Returns:
        1/m at the top and at the bottom.
    """
    table, depth_m = truth_table(source)
    height = (np.arange(BANDS) + 0.5) / BANDS
    below, far = np.cumsum(table / depth_m, axis=1), np.cumsum(table, axis=1)

    def error(ends: np.ndarray) -> float:
        guess = 1 / np.maximum(ends[0] + (ends[1] - ends[0]) * height, least_dpt)
        # sum of share * |guess / depth - 1| over the depths before the guess, and over those behind it
        step = np.clip(np.searchsorted(depth_m, guess) - 1, 0, None)
        band = np.arange(BANDS)
        near = guess * below[band, step] - far[band, step]
        total = guess * below[:, -1] - far[:, -1]
        return float((2 * near - total).sum())

    middle = 1 / best_constant(source)
    starts = [(middle, middle), (0.5 * middle, 1.5 * middle), (0.2 * middle, 3 * middle)]
    found = [minimize(error, start, method="Nelder-Mead", options={"xatol": 1e-5, "fatol": 1e-7}) for start in starts]
    return tuple(float(end) for end in min(found, key=lambda result: result.fun).x)
