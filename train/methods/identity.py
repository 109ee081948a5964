"""The photo itself at every K: what a bokeh method must beat."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from train.methods import MethodOptions, refuse_argument
from train.sources import Sample, Source


class Identity:
    """Returns the photo.

    Args:
        argument: must be empty.
        options: of no effect.
    """

    weights, uses_truth, uses_intrinsics = "none", False, False

    def __init__(self, argument: str, options: MethodOptions) -> None:
        refuse_argument(argument, "identity")

    def prepare(self, source: Source) -> None:
        """Nothing to do."""

    def frames(self, sample: Sample, bokeh_strengths: Sequence[float]) -> np.ndarray:
        """The photo, (F, H, W, 3)."""
        return np.repeat(sample.photo[None], len(bokeh_strengths), axis=0)
