"""The whole photo blurred by one disk: what a method that knows blur but not place can reach."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bokehdepth.camera.lens import REFERENCE_WIDTH_PX
from bokehdepth.errors import InputError
from bokehdepth.metrics import psnr
from bokehdepth.rendering.disk import disk_blur
from train.methods import MethodOptions
from train.sources import Sample, Source

OFFSETS_DPT = (0.02, 0.04, 0.06, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8)
"""Disparity offsets that are tried."""
FITTED = 64
"""Samples, evenly spread, that the offset is chosen on."""


class UniformBlur:
    """Blurs with `radius = K * (width / 512) * offset`, one offset for all pictures.

    The offset is the one of `OFFSETS_DPT` with the best mean PSNR on the evaluated pictures themselves: the row is the
    most that a uniform blur can do there.

    Args:
        argument: an offset in dioptres, or empty to choose the best.
        options: of no effect.
    """

    weights, uses_truth, uses_intrinsics = "none", True, False

    def __init__(self, argument: str, options: MethodOptions) -> None:
        self.offset_dpt: float | None = None
        if argument:
            try:
                self.offset_dpt = float(argument)
            except ValueError:
                self.offset_dpt = -1.0
            if not 0 <= self.offset_dpt < np.inf:
                raise InputError(f"method is uniform_blur:{argument}, wanted an offset in dioptres, 0 or more.")
            self.uses_truth = False

    def prepare(self, source: Source) -> None:
        """Chooses the offset where none was given."""
        if self.offset_dpt is not None:
            return
        numbers = np.unique(np.linspace(0, len(source) - 1, min(FITTED, len(source))).astype(int))
        scores = np.zeros(len(OFFSETS_DPT))
        pictures = 0
        for sample in (source[int(n)] for n in numbers):
            for target in sample.targets:
                pictures += 1
                for index, offset in enumerate(OFFSETS_DPT):
                    blurred = self._blur(sample.photo, target.bokeh_strength, offset)
                    scores[index] += min(psnr(blurred, target.picture), 100.0)
        if not pictures:
            raise InputError("uniform_blur has no target to choose its offset on, wanted uniform_blur:OFFSET.")
        self.offset_dpt = OFFSETS_DPT[int(scores.argmax())]

    @staticmethod
    def _blur(photo: np.ndarray, bokeh_strength: float, offset_dpt: float) -> np.ndarray:
        radius_px = bokeh_strength * photo.shape[1] / REFERENCE_WIDTH_PX * offset_dpt
        return np.clip(disk_blur(photo, radius_px, gamma=2.2), 0, 1)

    def frames(self, sample: Sample, bokeh_strengths: Sequence[float]) -> np.ndarray:
        """The blurred photo, (F, H, W, 3)."""
        return np.stack([self._blur(sample.photo, k, self.offset_dpt) for k in bokeh_strengths])
