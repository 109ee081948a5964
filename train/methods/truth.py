"""The true depth: the perfect row of a depth table, and what `render:truth` renders with."""

from __future__ import annotations

import numpy as np

from bokehdepth.errors import InputError
from train.methods import MethodOptions, refuse_argument
from train.rows import fill_holes
from train.sources import Sample, Source


class Truth:
    """Returns the true depth; a hole takes the depth of the nearest pixel that has one.

    Args:
        argument: must be empty.
        options: of no effect.
    """

    weights, uses_truth, uses_intrinsics, key = "none", True, False, "depth_metric"

    def __init__(self, argument: str, options: MethodOptions) -> None:
        refuse_argument(argument, "truth")

    def prepare(self, source: Source) -> None:
        """Nothing to do."""

    def depth(self, sample: Sample) -> np.ndarray:
        """Metres at the photo's size, float32 (H, W); InputError where the sample has no depth."""
        depth_m = sample.depth_of_photo_m()
        if depth_m is None or not np.isfinite(depth_m).any():
            raise InputError(f"sample {sample.sample_id!r} has no metric depth, wanted some.")
        return fill_holes(depth_m)
