"""How wide the blur is that a bokeh generator made, measured against K where the depth is known.

The measurement knows nothing of the generator: in small patches of one depth it finds the disk whose blur of the sharp
photo comes nearest to the generated frame, and looks how its radius grows with K (Eq. 15 says: in proportion).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bokehdepth.camera.lens import REFERENCE_WIDTH_PX
from bokehdepth.errors import InputError
from bokehdepth.metrics.checks import checked_float, checked_pictures
from bokehdepth.rendering.disk import disk_blur

_STEP_PX = 0.25
_SPREAD = 0.1
"""Relative spread of the true offset within a patch, up to which it counts as one depth."""
_TEXTURE = 0.01
"""Mean change, in display values, that the true blur at the largest K has to make: else nothing can be measured."""


@dataclass(frozen=True)
class BlurResponse:
    """Measured radii of N patches of one photo.

    Attributes:
        radius_px: measured radius for each patch and K, ``(N, F)``, pixels.
        slope: growth of the measured radius with K over that of Eq. 15, ``(N,)``: 1 is right, 0 is no blur.
        is_monotone: whether the radius never falls from one K to the next, and grows from the first to the last,
            ``(N,)``.
    """

    radius_px: np.ndarray
    slope: np.ndarray
    is_monotone: np.ndarray


def blur_response(
    sharp: np.ndarray,
    frames: np.ndarray,
    bokeh_strengths: Sequence[float],
    offset_dpt: np.ndarray,
    *,
    patch_px: int = 16,
    least_radius_px: float = 2.0,
    largest_radius_px: float = 8.0,
    gamma: float = 2.2,
) -> BlurResponse:
    """Measure the blur radius of generated frames in patches of one known disparity.

    A patch counts where its true offset varies by at most a tenth, its true radius at the largest K lies between the
    two bounds, and it has texture. Patches do not overlap.

    Radii up to 0.6 px are measured as 0, since up to 0.5 px a disk leaves the picture as it is; from 0.7 px they are
    right to within 7 %, from 1.5 px to within 2 %. So slopes come out too small where all radii are small: on rendered
    frames of K = 5 to 30 they are .87 where the largest radius is 1 px and .95 at 1.5 px; from 2 px on they are right
    to within .02. A ray-traced lens, which reads its picture between the pixels and so blurs a little more than the
    disk, has 1.07 at 2 px, 1.04 at 3 px and 1.02 or less from 5 px on.

    Args:
        sharp: All-in-focus picture, float ``(H, W, 3)`` display values in [0, 1].
        frames: Generated stack, float ``(F, H, W, 3)`` in [0, 1], F at least 2.
        bokeh_strengths: K of the frames at the reference width, ``(F,)``, ascending, above 0.
        offset_dpt: True ``|1/S1 - 1/S2|`` in 1/m, float ``(H, W)``.
        patch_px: Side of a patch.
        least_radius_px: Smallest true radius at the largest K; below 2 slopes come out too small.
        largest_radius_px: Largest one.
        gamma: The disks blur in linear light ``value ** gamma``.

    Returns:
        Radii, slopes and whether they rise; N is 0 where no patch counts.

    Raises:
        InputError: If shapes or values differ from the above.
    """
    strengths = np.asarray(bokeh_strengths, dtype=np.float64)
    if strengths.ndim != 1 or len(strengths) < 2 or not (np.diff(strengths) > 0).all() or strengths[0] <= 0:
        raise InputError(f"bokeh_strengths is {bokeh_strengths!r}, wanted two or more ascending numbers above 0")
    checked_float("frames", frames)
    if frames.ndim != 4 or len(frames) != len(strengths):
        raise InputError(f"frames has the shape {frames.shape}, wanted ({len(strengths)}, H, W, 3) as bokeh_strengths")
    checked_pictures(sharp, **{f"frames[{index}]": frame for index, frame in enumerate(frames)})
    checked_float("offset_dpt", offset_dpt, sharp.shape[:2])
    if patch_px < 4 or patch_px > min(sharp.shape[:2]):
        raise InputError(f"patch_px is {patch_px}, wanted 4 or more and no more than the picture's {sharp.shape[:2]}")
    slope_px = sharp.shape[1] / REFERENCE_WIDTH_PX * offset_dpt  # pixels of radius for each unit of K, Eq. 15
    ladder = np.arange(0, 1.5 * largest_radius_px + _STEP_PX, _STEP_PX)
    truth = _tiles(slope_px, patch_px)
    mean = truth.mean(axis=1)
    top = mean * strengths[-1]
    counts = (truth.std(axis=1) <= _SPREAD * mean) & (top >= least_radius_px) & (top <= largest_radius_px)
    blurred = np.stack([disk_blur(sharp, float(r), gamma=gamma) if r > 0.5 else sharp for r in ladder])
    change = np.stack([_tiles(np.abs(b - sharp).mean(axis=-1), patch_px).mean(axis=1) for b in blurred])
    nearest = np.clip(np.round(top / _STEP_PX).astype(int), 0, len(ladder) - 1)
    counts &= change[nearest, np.arange(len(top))] >= _TEXTURE
    costs = np.stack(
        [
            [_tiles(np.square(b - frame).mean(axis=-1), patch_px).mean(axis=1)[counts] for b in blurred]
            for frame in frames
        ]
    )  # (F, R, N)
    radius = np.stack([_minimum(cost, ladder) for cost in costs], axis=1)
    slope = radius @ strengths / np.sum(strengths**2) / np.maximum(mean[counts], 1e-12)
    rises = (np.diff(radius, axis=1) >= -1e-6).all(axis=1) & (radius[:, -1] > radius[:, 0])
    return BlurResponse(radius, slope, rises)


def _tiles(values: np.ndarray, side: int) -> np.ndarray:
    """Cut ``(H, W)`` into squares: ``(N, side^2)``; what is left over at the right and below is left out."""
    rows, columns = (n // side for n in values.shape)
    cut = values[: rows * side, : columns * side].reshape(rows, side, columns, side)
    return cut.transpose(0, 2, 1, 3).reshape(rows * columns, side * side)


def _minimum(cost: np.ndarray, ladder: np.ndarray) -> np.ndarray:
    """Radius of the least cost of ``(R, N)``, refined by the parabola through its neighbours."""
    best = cost.argmin(axis=0)
    inner = np.clip(best, 1, len(ladder) - 2)
    columns = np.arange(cost.shape[1])
    low, middle, high = cost[inner - 1, columns], cost[inner, columns], cost[inner + 1, columns]
    curvature = low - 2 * middle + high
    shift = np.where(curvature > 1e-12, 0.5 * (low - high) / np.maximum(curvature, 1e-12), 0.0)
    # Below half a pixel a disk is the identity, so the ladder is flat there and nothing can be refined.
    refined = (best == inner) & (ladder[inner] > 0.75)
    return ladder[best] + np.where(refined, np.clip(shift, -0.5, 0.5) * _STEP_PX, 0.0)
