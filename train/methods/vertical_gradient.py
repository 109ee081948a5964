"""Depth from the row alone: how much of a score is that things lower in a picture are nearer."""

from __future__ import annotations

import numpy as np

from bokehdepth.errors import InputError
from train.methods import MethodOptions
from train.methods.fits import best_line
from train.sources import Sample, Source

ROWS = 64
"""Bins of the height in which the line is fitted."""
MAX_DEPTH_M = 200.0


class VerticalGradient:
    """Disparity as a line over the height, `1 / depth = top + (bottom - top) * y`, one line for all photos.

    The line is fitted to the evaluated photos' own true depth, each photo counting the same: the row is about the most
    that position can do there.

    Args:
        argument: empty for least squares of the median disparity of `ROWS` bands; best for the smallest AbsRel.
        options: of no effect.
    """

    weights, uses_truth, uses_intrinsics, key = "none", True, False, "depth_metric"

    def __init__(self, argument: str, options: MethodOptions) -> None:
        if argument not in ("", "best"):
            raise InputError(f"`argument` must be empty or best behind vertical_gradient, got {argument!r}.")
        self.is_best = argument == "best"

    def prepare(self, source: Source) -> None:
        """Fits the line."""
        if self.is_best:
            self.top_dpt, self.bottom_dpt = best_line(source, 1 / MAX_DEPTH_M)
            return
        heights, disparities, weights = [], [], []
        for sample in source:
            if sample.depth_m is None:
                continue
            found = []
            for index, band in enumerate(np.array_split(sample.depth_m, ROWS)):
                known = band[np.isfinite(band)]
                if known.size:
                    found.append(((index + 0.5) / ROWS, 1 / float(np.median(known))))
            heights += [y for y, _ in found]
            disparities += [d for _, d in found]
            weights += [len(found) ** -0.5] * len(found)
        if len(set(heights)) < 2:
            raise InputError("vertical_gradient has no true depth to fit its line to, wanted samples with depth.")
        slope, top = np.polyfit(heights, disparities, 1, w=weights)
        self.top_dpt, self.bottom_dpt = float(top), float(top + slope)

    def depth(self, sample: Sample) -> np.ndarray:
        """The line's depth, at most `MAX_DEPTH_M`, float32 (H, W)."""
        height, width = sample.photo.shape[:2]
        y = (np.arange(height) + 0.5) / height
        disparity = np.maximum(self.top_dpt + (self.bottom_dpt - self.top_dpt) * y, 1 / MAX_DEPTH_M)
        return np.repeat((1 / disparity).astype(np.float32)[:, None], width, axis=1)
