"""Which pixels count, which depths, and how a prediction of unknown scale is aligned: stated rules by name.

The crops are those of the benchmarks' usual evaluation: Eigen et al. 2014 for NYUv2 and KITTI, Garg et al. 2016 for
KITTI. A prediction says what it is by the name of its array, and that name alone decides the alignment.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bokehdepth.errors import InputError
from train.evaluation.metrics_depth import boundary_f1, depth_errors

ALIGNMENTS = {
    "depth_metric": "none",
    "depth_scale_invariant": "median",
    "depth_affine_invariant": "scale, shift",
    "disparity_affine_invariant": "scale, shift of 1/depth",
}
"""Names that a predicted array can have, and what `aligned_depth_m` does with it."""

DEPTH_MEASURES = (
    "abs_rel", "sq_rel", "rmse_m", "rmse_log", "log10", "si_log", "delta1", "delta2", "delta3", "boundary_f1",
)  # fmt: skip


@dataclass(frozen=True)
class DepthProtocol:
    """Pixels and depths that an evaluation counts.

    Attributes:
        name: as tables print it.
        min_depth_m: only deeper pixels count.
        max_depth_m: only nearer pixels count (the cap); None for no cap.
        rows: first and last-plus-one row of the crop, as shares of the height, or pixels where `size_px` is set.
        columns: the same across.
        size_px: height and width that the crop is defined for; None for every size.
        clips_prediction: whether predictions are moved into the range of depths before they are scored, as these
            benchmarks do; otherwise they are scored as they are.
    """

    name: str
    min_depth_m: float = 0.0
    max_depth_m: float | None = None
    rows: tuple[float, float] = (0.0, 1.0)
    columns: tuple[float, float] = (0.0, 1.0)
    size_px: tuple[int, int] | None = None
    clips_prediction: bool = False

    def crop(self, height: int, width: int) -> tuple[slice, slice]:
        """Rows and columns that count in a picture; InputError where the crop is defined for another size."""
        if self.size_px is not None and (height, width) != self.size_px:
            size = f"{self.size_px[1]} x {self.size_px[0]}"
            raise InputError(f"`depth` must have {size} pixels for {self.name}, got {width} x {height}.")
        scale_y, scale_x = (1, 1) if self.size_px is not None else (height, width)
        return slice(*(int(r * scale_y) for r in self.rows)), slice(*(int(c * scale_x) for c in self.columns))

    def valid(self, target_m: np.ndarray) -> np.ndarray:
        """Mask the pixels that count: inside the crop, with a depth inside the range.

        Args:
            target_m: true depth in metres, float (H, W); 0, NaN and inf have no value.

        Returns:
            bool (H, W); it may be false everywhere.

        Raises:
            InputError: the crop is defined for another size.
        """
        inside = np.zeros(target_m.shape, dtype=bool)
        inside[self.crop(*target_m.shape)] = True
        with np.errstate(invalid="ignore"):
            in_range = (target_m > self.min_depth_m) & (target_m < (self.max_depth_m or np.inf))
        return inside & in_range


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        DepthProtocol("full"),
        DepthProtocol("nyuv2_eigen", 1e-3, 10.0, (45, 471), (41, 601), (480, 640), True),
        DepthProtocol(
            "kitti_eigen", 1e-3, 80.0, (0.3324324, 0.91351351), (0.0359477, 0.96405229), clips_prediction=True
        ),
        DepthProtocol(
            "kitti_garg", 1e-3, 80.0, (0.40810811, 0.99189189), (0.03594771, 0.96405229), clips_prediction=True
        ),
    )
}
"""The named evaluations. `full` counts every pixel that has depth and clips nothing."""


def aligned_depth_m(
    prediction: np.ndarray, key: str, target_m: np.ndarray, valid: np.ndarray, low_m: float, high_m: float
) -> np.ndarray:
    """Turn a prediction into metres by the rule of its name.

    `depth_metric` is taken as it is. `depth_scale_invariant` gets the target's median. `depth_affine_invariant` gets
    the scale and shift that fit the target's depth best in the least-squares sense; `disparity_affine_invariant` those
    that fit the inverse of the target's depth best (MiDaS), and is inverted. A fitted line can leave the positive
    numbers: the two affine kinds are moved into the range of depths.

    Args:
        prediction: float (H, W), finite where it counts.
        key: one of `ALIGNMENTS`.
        target_m: true depth in metres, float (H, W).
        valid: pixels that are fitted, bool (H, W).
        low_m: lower end for the affine kinds.
        high_m: upper end for the affine kinds.

    Returns:
        float64 (H, W) in metres.
    """
    values, true = prediction.astype(np.float64), target_m[valid].astype(np.float64)
    fitted = values[valid]
    if key == "depth_metric":
        return values
    if key == "depth_scale_invariant":
        return values * (np.median(true) / np.median(fitted))
    is_depth = key == "depth_affine_invariant"
    design = np.stack([fitted, np.ones_like(fitted)], axis=1)
    scale, shift = np.linalg.lstsq(design, true if is_depth else 1 / true, rcond=None)[0]
    line = scale * values + shift
    return np.clip(line, low_m, high_m) if is_depth else 1 / np.clip(line, 1 / high_m, 1 / low_m)


def score_depth(
    prediction: np.ndarray, key: str, target_m: np.ndarray, protocol: DepthProtocol
) -> dict[str, float] | None:
    """Take every measure of one depth map.

    Args:
        prediction: float (H, W).
        key: one of `ALIGNMENTS`.
        target_m: true depth in metres, float (H, W); 0, NaN and inf have no value.
        protocol: which pixels and depths count.

    Returns:
        The numbers by the names of `DEPTH_MEASURES`, `boundary_f1` NaN where no two pixels that count are neighbours;
        None where no pixel counts.

    Raises:
        InputError: a value of the prediction that counts is not finite, or a depth not above 0.
    """
    valid = protocol.valid(target_m)
    if not valid.any():
        return None
    counted = prediction[valid]
    bad = ~np.isfinite(counted) if "affine" in key else ~(np.isfinite(counted) & (counted > 0))
    if bad.any():
        raise InputError(
            f"`prediction` must be finite{'' if 'affine' in key else ' and above 0'} where the truth counts, got "
            f"{counted[bad][0]:g} at {bad.sum()} pixels."
        )
    low_m, high_m = max(protocol.min_depth_m, 1e-3), min(protocol.max_depth_m or 1e3, 1e3)
    depth_m = aligned_depth_m(prediction, key, target_m, valid, low_m, high_m)
    if protocol.clips_prediction:
        depth_m = np.clip(depth_m, protocol.min_depth_m, protocol.max_depth_m)
    errors = depth_errors(depth_m[valid], target_m[valid].astype(np.float64))
    return errors | {"boundary_f1": boundary_f1(depth_m, target_m, valid)}
