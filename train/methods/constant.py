"""One depth for every pixel of every photo: a metric depth method must beat it."""

from __future__ import annotations

import numpy as np

from bokehdepth.errors import InputError
from train.methods import MethodOptions
from train.methods.fits import best_constant
from train.sources import Sample, Source


class Constant:
    """Returns one depth: a given one, or one chosen by the evaluated photos' own true depths.

    Args:
        argument: metres; empty for the median of the photos' medians; best for the constant of the smallest AbsRel.
        options: of no effect.
    """

    weights, uses_truth, uses_intrinsics, key = "none", True, False, "depth_metric"

    def __init__(self, argument: str, options: MethodOptions) -> None:
        self.depth_m: float | None = None
        self.is_best = argument == "best"
        if argument and not self.is_best:
            try:
                self.depth_m = float(argument)
            except ValueError:
                self.depth_m = -1.0
            if not 0 < self.depth_m < np.inf:
                raise InputError(f"method is constant:{argument}, wanted metres above 0, or best.")
            self.uses_truth = False

    def prepare(self, source: Source) -> None:
        """Chooses the depth where none was given."""
        if self.is_best:
            self.depth_m = best_constant(source)
        elif self.depth_m is None:
            depths = [s.depth_m for s in source if s.depth_m is not None and np.isfinite(s.depth_m).any()]
            if not depths:
                raise InputError("constant has no true depth to take the median of, wanted constant:METRES.")
            self.depth_m = float(np.median([np.nanmedian(depth) for depth in depths]))

    def depth(self, sample: Sample) -> np.ndarray:
        """The constant, float32 (H, W)."""
        return np.full(sample.photo.shape[:2], self.depth_m, dtype=np.float32)
