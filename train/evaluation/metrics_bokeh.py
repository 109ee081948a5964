"""Likeness of pictures, and what a bokeh generator did to a photo: selectivity, K response, measured blur radius.

PSNR, SSIM, LPIPS and DISTS are Eq. 35-39 of arXiv 2512.12425, the others this project's controls of Stage-1. Pictures
are display values, float (H, W, 3) in [0, 1]; of PSNR and SSIM the caller says what the values are: section 10 of the
paper measures on linear RGB, most others display values (sRGB).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from bokehdepth.camera.lens import REFERENCE_WIDTH_PX
from bokehdepth.errors import InputError
from bokehdepth.rendering.disk import disk_blur

GAMMA = 2.2
"""Light is a display value to this power; disks blur light."""
CEILING_DB = 60.0
"""PSNR of pictures that agree to less than half an 8-bit step, so that equal ones leave a mean."""
PERCEPTUAL = {
    "lpips": (
        "torchmetrics.image.lpip",
        "LearnedPerceptualImagePatchSimilarity",
        {"net_type": "alex", "normalize": True},
    ),
    "dists": ("torchmetrics.image.dists", "DeepImageStructureAndTextureSimilarity", {}),
}
"""Distances of features: LPIPS (AlexNet, version 0.1) and DISTS (VGG-16), by torchmetrics."""
Distance = Callable[[np.ndarray, np.ndarray], float]


def psnr(picture: np.ndarray, truth: np.ndarray) -> float:
    """Peak signal-to-noise ratio in decibels, at most `CEILING_DB`."""
    with np.errstate(divide="ignore"):
        value = peak_signal_noise_ratio(truth.astype(np.float64), picture.astype(np.float64), data_range=1.0)
    return min(float(value), CEILING_DB)


def ssim(picture: np.ndarray, truth: np.ndarray) -> float:
    """Structural similarity as Wang et al. 2004 have it: Gaussian windows of 11 x 11 px with a deviation of 1.5 px.

    The mean is taken over all channels of the pixels whose window lies inside the picture.
    """
    return float(
        structural_similarity(
            picture.astype(np.float64),
            truth.astype(np.float64),
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=1.0,
            channel_axis=2,
        )
    )


def perceptual_distance(name: str) -> Distance:
    """Load a perceptual distance; torchvision defines its network, whose weights are downloaded at first use.

    Args:
        name: one of `PERCEPTUAL`.

    Returns:
        A function of a picture and the truth that gives the distance: 0 for equal pictures.

    Raises:
        InputError: torchmetrics or torchvision is not installed, or weights cannot be had.
    """
    import torch

    module, kind, options = PERCEPTUAL[name]
    for package in ("torchmetrics", "torchvision"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise InputError(f"{name} needs the package {package}, which is not installed") from error
    try:
        measure = getattr(importlib.import_module(module), kind)(**options).eval()
    except (OSError, RuntimeError, ImportError) as error:
        raise InputError(f"{name} needs weights that cannot be had ({type(error).__name__}: {error})") from error

    @torch.no_grad()
    def distance(picture: np.ndarray, truth: np.ndarray) -> float:
        measure.reset()
        pair = (np.ascontiguousarray(pixels, np.float32) for pixels in (picture, truth))
        return float(measure(*(torch.from_numpy(pixels).permute(2, 0, 1)[None] for pixels in pair)))

    return distance


def uniform_change(photo: np.ndarray, radius_px: float) -> np.ndarray:
    """How much one disk blur changes each pixel of a photo, (H, W): what other changes are measured by."""
    photo = photo.astype(np.float64)
    return np.abs(disk_blur(photo, radius_px, gamma=GAMMA) - photo).mean(axis=-1)


def relative_change(photo: np.ndarray, picture: np.ndarray, area: np.ndarray, reference: np.ndarray) -> float | None:
    """Mean absolute change of an area over that of a uniform blur, which takes out how much texture the area has.

    Args:
        photo: all in focus.
        picture: the generated one.
        area: pixels that count, bool (H, W).
        reference: `uniform_change` of the photo, (H, W).

    Returns:
        The ratio; None where the area is empty, or has no texture that the reference blur changes.
    """
    # 1e-6 is the rounding of the FFT, far below one 8-bit step.
    if not area.any() or reference[area].mean() < 1e-6:
        return None
    change = np.abs(picture.astype(np.float64) - photo).mean(axis=-1)
    return float(change[area].mean() / reference[area].mean())


class Selectivity(NamedTuple):
    """How much more a generator changed defocused pixels than pixels in focus.

    Attributes:
        defocused: `relative_change` of the defocused pixels.
        in_focus: that of the pixels in focus; 0 if they were left as they are. A uniform blur has about the same in
            both, whatever its radius.
    """

    defocused: float
    in_focus: float


def selectivity(photo: np.ndarray, picture: np.ndarray, radius_px: np.ndarray) -> Selectivity | None:
    """Measure whether a generator blurs what is out of focus rather than everything.

    Defocused is what has a true radius above 2 px in a picture 128 px wide, in focus what has one below 0.5 px; the
    uniform blur has 4 px. All three grow with the width.

    Args:
        photo: all in focus.
        picture: the generated one.
        radius_px: true radius of the blur disk at each pixel (Eq. 15), (H, W); a pixel of NaN belongs to neither area.

    Returns:
        The two relative changes; None where the photo lacks one of the areas, or texture in it.
    """
    scale = photo.shape[1] / 128
    reference = uniform_change(photo, 4 * scale)
    with np.errstate(invalid="ignore"):
        areas = radius_px > 2 * scale, radius_px < scale / 2
    changes = [relative_change(photo, picture, area, reference) for area in areas]
    return None if None in changes else Selectivity(*changes)


class KResponse(NamedTuple):
    """How a generator's change grows with the bokeh strength.

    Attributes:
        mean_change: mean absolute change from the photo in the area at each K, (F,), display values.
        rising_share: share of the F - 1 steps from one K to the next in which the change rises.
    """

    mean_change: np.ndarray
    rising_share: float


def k_response(photo: np.ndarray, frames: np.ndarray, area: np.ndarray) -> KResponse:
    """Measure whether more bokeh strength makes more blur.

    Args:
        photo: all in focus.
        frames: generated stack at ascending K, (F, H, W, 3), F at least 2.
        area: pixels that count, the same for every K, bool (H, W), not empty.
    """
    inside = photo[area].astype(np.float64)
    change = np.array([np.abs(frame[area] - inside).mean() for frame in frames])
    return KResponse(change, float(np.mean(np.diff(change) > 0)))


_STEP_PX = 0.25
_SPREAD = 0.1
"""Relative spread of the true offset within a patch, up to which it counts as one depth."""
_TEXTURE = 0.01
"""Mean change, in display values, that the true blur at the largest K has to make: else nothing can be measured."""


class BlurResponse(NamedTuple):
    """How the measured blur radius grows with K, for each of N patches.

    Attributes:
        slope: growth of the radius with K over that of Eq. 15, (N,): 1 is right, 0 is no blur.
        is_monotone: whether it never falls from one K to the next and grows from the first to the last, bool (N,).
    """

    slope: np.ndarray
    is_monotone: np.ndarray


def blur_response(
    photo: np.ndarray,
    frames: np.ndarray,
    bokeh_strengths: Sequence[float],
    offset_dpt: np.ndarray,
    *,
    patch_px: int = 16,
    least_radius_px: float = 2.0,
    largest_radius_px: float = 8.0,
) -> BlurResponse:
    """Measure how the blur radius of generated frames grows with K, in patches of one known disparity.

    The measurement knows nothing of the generator: in each patch it finds the disk whose blur of the photo comes
    nearest to the frame. A patch counts where its true offset varies by at most a tenth, its true radius at the
    largest K lies between the two bounds, and it has texture. Patches do not overlap.

    Radii up to 0.6 px are measured as 0, since up to 0.5 px a disk leaves the picture as it is; from 0.7 px they are
    right to within 7 %, from 1.5 px to within 2 %. So slopes come out too small where all radii are small: on rendered
    frames of K = 5 to 30 they are .87 where the largest radius is 1 px and .95 at 1.5 px; from 2 px on they are right
    to within .02. A ray-traced lens, which reads its picture between the pixels and so blurs a little more than the
    disk, has 1.07 at 2 px, 1.04 at 3 px and 1.02 or less from 5 px on.

    Args:
        photo: all in focus.
        frames: generated stack, (F, H, W, 3), F at least 2.
        bokeh_strengths: K of the frames at the reference width, ascending, above 0, (F,).
        offset_dpt: true |1/S1 - 1/S2| in 1/m, (H, W); NaN where it is not known.
        patch_px: side of a patch, at most that of the photo.
        least_radius_px: smallest true radius at the largest K; below 2 slopes come out too small.
        largest_radius_px: largest one.

    Returns:
        The response of the patches that count.
    """
    strengths = np.asarray(bokeh_strengths, dtype=np.float64)
    slope_px = photo.shape[1] / REFERENCE_WIDTH_PX * offset_dpt  # pixels of radius for each unit of K, Eq. 15
    ladder = np.arange(0, 1.5 * largest_radius_px + _STEP_PX, _STEP_PX)
    truth = _tiles(slope_px, patch_px)
    mean = truth.mean(axis=1)
    top = mean * strengths[-1]
    counts = (truth.std(axis=1) <= _SPREAD * mean) & (top >= least_radius_px) & (top <= largest_radius_px)
    blurred = np.stack([disk_blur(photo, float(r), gamma=GAMMA) if r > 0.5 else photo for r in ladder])
    change = np.stack([_tiles(np.abs(b - photo).mean(axis=-1), patch_px).mean(axis=1) for b in blurred])
    nearest = np.clip(np.round(np.nan_to_num(top) / _STEP_PX).astype(int), 0, len(ladder) - 1)
    counts &= change[nearest, np.arange(len(top))] >= _TEXTURE
    costs = [
        [_tiles(np.square(b - frame).mean(axis=-1), patch_px).mean(axis=1)[counts] for b in blurred]
        for frame in frames
    ]  # (F, R, N)
    radius = np.stack([_minimum(np.stack(cost), ladder) for cost in costs], axis=1)
    slope = radius @ strengths / np.sum(strengths**2) / np.maximum(mean[counts], 1e-12)
    rises = (np.diff(radius, axis=1) >= -1e-6).all(axis=1) & (radius[:, -1] > radius[:, 0])
    return BlurResponse(slope, rises)


def _tiles(values: np.ndarray, side: int) -> np.ndarray:
    """Cut (H, W) into squares: (N, side^2); what is left over at the right and below is left out."""
    rows, columns = (n // side for n in values.shape)
    cut = values[: rows * side, : columns * side].reshape(rows, side, columns, side)
    return cut.transpose(0, 2, 1, 3).reshape(rows * columns, side * side)


def _minimum(cost: np.ndarray, ladder: np.ndarray) -> np.ndarray:
    """Radius of the least cost of (R, N), refined by the parabola through its neighbours."""
    best = cost.argmin(axis=0)
    inner = np.clip(best, 1, len(ladder) - 2)
    columns = np.arange(cost.shape[1])
    low, middle, high = cost[inner - 1, columns], cost[inner, columns], cost[inner + 1, columns]
    curvature = low - 2 * middle + high
    shift = np.where(curvature > 1e-12, 0.5 * (low - high) / np.maximum(curvature, 1e-12), 0.0)
    # Below half a pixel a disk is the identity, so the ladder is flat there and nothing can be refined.
    refined = (best == inner) & (ladder[inner] > 0.75)
    return ladder[best] + np.where(refined, np.clip(shift, -0.5, 0.5) * _STEP_PX, 0.0)
