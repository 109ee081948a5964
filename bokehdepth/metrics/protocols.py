"""Which pixels count, which depths, and how a prediction of unknown scale is aligned: stated rules by name.

The crops are those of the benchmarks' usual evaluation: Eigen et al. 2014 for NYUv2 and KITTI, Garg et al. 2016 for
KITTI. A prediction says what it is by the name of its array, and that name alone decides the alignment.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bokehdepth.errors import InputError
from bokehdepth.metrics import depth as measures
from bokehdepth.metrics.checks import checked_float, checked_mask

DEPTH_KEYS = (
    "depth_metric",
    "depth_scale_invariant",
    "depth_affine_invariant",
    "disparity_affine_invariant",
)
"""Names that a predicted array can have, and with them the alignment of ``aligned_depth_m``."""

DEPTH_MEASURES = (
    "abs_rel", "sq_rel", "rmse_m", "rmse_log", "log10", "si_log", "delta1", "delta2", "delta3", "boundary_f1",
)  # fmt: skip


@dataclass(frozen=True)
class DepthProtocol:
    """Pixels and depths that an evaluation counts.

    Attributes:
        name: As tables print it.
        min_depth_m: Only deeper pixels count.
        max_depth_m: Only nearer pixels count (the cap); inf for none.
        rows: First and last-plus-one row of the crop, as shares of the height, or pixels where ``size_px`` is set.
        columns: The same across.
        size_px: Height and width that the crop is defined for; None for every size.
        clips_prediction: Whether predictions are moved into the range of depths before they are scored, as these
            benchmarks do; otherwise they are scored as they are.
    """

    name: str
    min_depth_m: float = 0.0
    max_depth_m: float = float("inf")
    rows: tuple[float, float] = (0.0, 1.0)
    columns: tuple[float, float] = (0.0, 1.0)
    size_px: tuple[int, int] | None = None
    clips_prediction: bool = False

    def crop(self, height: int, width: int) -> tuple[slice, slice]:
        """Return the rows and columns that count in a picture of ``height`` x ``width`` pixels.

        Raises:
            InputError: The crop is defined for another size.
        """
        if self.size_px is not None and (height, width) != self.size_px:
            raise InputError(
                f"target_m has {width} x {height} pixels, wanted {self.size_px[1]} x {self.size_px[0]} for {self.name}"
            )
        scale_y, scale_x = (1, 1) if self.size_px is not None else (height, width)
        return slice(*(int(r * scale_y) for r in self.rows)), slice(*(int(c * scale_x) for c in self.columns))

    def valid(self, target_m: np.ndarray) -> np.ndarray:
        """Mask the pixels that count: inside the crop, with a depth inside the range.

        Args:
            target_m: True depth in metres, float ``(H, W)``; 0, NaN and inf have no value.

        Returns:
            bool ``(H, W)``; it may be false everywhere.

        Raises:
            InputError: If ``target_m`` is no floating-point ``(H, W)`` array or of a size that the crop is not for.
        """
        checked_float("target_m", target_m)
        if target_m.ndim != 2:
            raise InputError(f"target_m has the shape {target_m.shape}, wanted (H, W)")
        inside = np.zeros(target_m.shape, dtype=bool)
        inside[self.crop(*target_m.shape)] = True
        with np.errstate(invalid="ignore"):
            in_range = np.isfinite(target_m) & (target_m > self.min_depth_m) & (target_m < self.max_depth_m)
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
"""The named evaluations. ``full`` counts every pixel that has depth and clips nothing."""


def _least_squares(prediction: np.ndarray, target: np.ndarray) -> tuple[float, float]:
    columns = np.stack([prediction, np.ones_like(prediction)], axis=1)
    scale, shift = np.linalg.lstsq(columns, target, rcond=None)[0]
    return float(scale), float(shift)


def aligned_depth_m(
    prediction: np.ndarray,
    key: str,
    target_m: np.ndarray,
    valid: np.ndarray,
    *,
    min_depth_m: float = 1e-3,
    max_depth_m: float = 1e3,
) -> np.ndarray:
    """Turn a prediction into metres by the rule of its name.

    ``depth_metric`` is taken as it is. ``depth_scale_invariant`` gets the target's median. ``depth_affine_invariant``
    gets the scale and shift that fit the target's depth best in the least-squares sense;
    ``disparity_affine_invariant`` those that fit the inverse of the target's depth best (MiDaS), and is inverted. A
    fitted line can leave the positive numbers: the two affine kinds are moved into the range of depths.

    Args:
        prediction: Float ``(H, W)``, finite where it counts.
        key: One of ``DEPTH_KEYS``.
        target_m: True depth in metres, float ``(H, W)``.
        valid: Pixels that are fitted, bool ``(H, W)``.
        min_depth_m: Lower end for the affine kinds.
        max_depth_m: Upper end for the affine kinds.

    Returns:
        float64 ``(H, W)`` in metres.

    Raises:
        InputError: If the key is another, shapes or types differ from the above, no pixel counts, or a prediction that
            counts is not finite (and above 0 for the first two kinds).
    """
    if key not in DEPTH_KEYS:
        raise InputError(f"key is {key!r}, wanted one of {DEPTH_KEYS}")
    checked_float("target_m", target_m)
    checked_float("prediction", prediction, target_m.shape)
    checked_mask("valid", valid, target_m.shape)
    values = prediction.astype(np.float64)
    if key == "depth_metric":
        return values
    if key == "depth_scale_invariant":
        return measures.median_scaled(values, target_m, valid)
    fitted, true = values[valid], target_m[valid].astype(np.float64)
    if not np.isfinite(fitted).all():
        raise InputError(f"prediction is not finite at {int((~np.isfinite(fitted)).sum())} pixels that count")
    if not 0 < min_depth_m < max_depth_m < np.inf:
        raise InputError(f"min_depth_m is {min_depth_m!r} and max_depth_m {max_depth_m!r}, wanted 0 < min < max < inf")
    if key == "depth_affine_invariant":
        scale, shift = _least_squares(fitted, true)
        return np.clip(scale * values + shift, min_depth_m, max_depth_m)
    scale, shift = _least_squares(fitted, 1 / true)
    return 1 / np.clip(scale * values + shift, 1 / max_depth_m, 1 / min_depth_m)


def score_depth(
    prediction: np.ndarray, key: str, target_m: np.ndarray, protocol: DepthProtocol
) -> dict[str, float] | None:
    """Take every measure of one depth map.

    Args:
        prediction: Float ``(H, W)``.
        key: One of ``DEPTH_KEYS``.
        target_m: True depth in metres, float ``(H, W)``; 0, NaN and inf have no value.
        protocol: Which pixels and depths count.

    Returns:
        The numbers by the names of ``DEPTH_MEASURES``, ``boundary_f1`` NaN where no two pixels that count are
        neighbours; None where no pixel counts.

    Raises:
        InputError: As ``aligned_depth_m`` says, or a prediction that counts is not finite and above 0.
    """
    valid = protocol.valid(target_m)
    if not valid.any():
        return None
    low = max(protocol.min_depth_m, 1e-3)
    high = min(protocol.max_depth_m, 1e3)
    depth_m = aligned_depth_m(prediction, key, target_m, valid, min_depth_m=low, max_depth_m=high)
    if protocol.clips_prediction:
        depth_m = np.clip(depth_m, protocol.min_depth_m, protocol.max_depth_m)
    return {
        "abs_rel": measures.abs_rel(depth_m, target_m, valid),
        "sq_rel": measures.sq_rel(depth_m, target_m, valid),
        "rmse_m": measures.rmse(depth_m, target_m, valid),
        "rmse_log": measures.rmse_log(depth_m, target_m, valid),
        "log10": measures.log10_error(depth_m, target_m, valid),
        "si_log": measures.si_log(depth_m, target_m, valid),
        "delta1": measures.delta(depth_m, target_m, valid=valid),
        "delta2": measures.delta(depth_m, target_m, power=2, valid=valid),
        "delta3": measures.delta(depth_m, target_m, power=3, valid=valid),
        "boundary_f1": measures.boundary_f1(depth_m, target_m, valid),
    }
