"""One disparity offset fitted to the blur of one or more frames at each pixel, for a bracket (Eq. 19, 26).

The sharp frame is blurred by a ladder of disks; along the ladder the misfit to each frame is summed over a window,
with what noise explains taken out, and its minimum is the offset. No torch import.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.fft
from scipy import ndimage, special

from ..camera.lens import REFERENCE_WIDTH_PX, check_number
from ..errors import InputError
from ..rendering.disk import disk_kernel
from ..rendering.scatter import GAMMA

LARGEST_SHIFT_PX = 3.0
"""Shift between frames that is undone, along rows or columns; beyond it a camera moved, and parallax with it."""

_WINDOW_PX = 9  # at 512 px width; wider pictures get a window that covers the same part of the scene
_CELL_PX = 5  # first averaging, small enough to lie on one side of an edge; then far-off cells are bounded
_MISFIT = 0.02  # display value from which a misfit no longer counts in full: occlusion, highlights, motion
_SHARP_RADIUS_PX = 0.5  # up to here the disk is one pixel
_LARGEST_RADIUS_SHARE = 0.25  # of the shorter side
_LEAST_TOP_RADIUS_PX = 1.0
_TILE_PX = 512
_CHANCE = 2.0  # standard deviations by which the least of many costs stands out without any texture
_DARK = 1e-4  # light that keeps ratios finite
_VIGNETTING_LEAVES = 0.75  # of the deviations, at most, where it is believed
_PATCH_PX, _PATCH_MARGIN_PX, _LOW_PASS_PX = 256, 3, 2.0  # of the comparison of places
_SHIFT_LEAVES = 0.95  # of the differences, at most, where it is believed
_ROUNDING_NOISE = 1 / 255 / math.sqrt(12)
_EXPLAINED, _UNEXPLAINED = 0.1, 0.3  # shares of the largest misfit at which it begins to count and rules a radius out
_SEEN_BLUR = 0.03  # share of the largest misfit, from which blur speaks on the labels
_IN_PROPORTION, _OUT_OF_PROPORTION = 0.1, 0.25  # contradictions from which labels are doubted, and not believed
_TOLERANCE_SHARE, _TOLERANCE_PX = 0.1, 0.5


@dataclass(frozen=True)
class Bracket:
    """Checked frames of one scene and focus, their pictures channels first.

    Attributes:
        light: float32 (3, H, W), linear light of the sharp frame.
        frames: float32 (F, 3, H, W), display values, brought to the sharp frame's exposure and place.
        slopes_px: (F,) pixels of blur radius per dioptre that the sharp frame lacks, ``sqrt(K^2 - K0^2)`` scaled.
        full_slopes_px: (F,) pixels of blur radius per dioptre in the frame, K scaled to the picture's width.
        noise: standard deviation of the noise in display values.
        gains: (F, 2), light of each frame over that of the sharp one, at the centre and in the corners.
        shifts_px: (F, 2), pixels down and to the right by which each frame lay beside the sharp one.
        window_px: side of the window.
    """

    light: np.ndarray
    frames: np.ndarray
    slopes_px: np.ndarray
    full_slopes_px: np.ndarray
    noise: float
    gains: np.ndarray
    shifts_px: np.ndarray
    window_px: int


def relative_strengths(bokeh_strengths: Sequence[float] | np.ndarray, sharp_bokeh_strength: float) -> np.ndarray:
    """Strength of the blur that leads from the sharp frame, of K0, to each other one: ``sqrt(K^2 - K0^2)``, (F,).

    Two disks in a row are no disk, but their second moments ``r^2 / 4`` add up; the kernels differ in shape only.

    Raises:
        InputError: there is no frame, a number is negative or not finite, or a K is not above K0.
    """
    sharp = check_number(sharp_bokeh_strength, "sharp_bokeh_strength", zero=True)
    strengths = [check_number(float(strength), "bokeh_strengths") for strength in bokeh_strengths]
    if not strengths:
        raise InputError("bokeh_strengths is empty, wanted one for each frame and one frame or more.")
    if min(strengths) <= sharp:
        raise InputError(
            f"bokeh_strengths has {min(strengths):g}, wanted more than that of the sharp frame, {sharp:g}: a frame is "
            "compared with a sharper one."
        )
    return np.sqrt(np.square(strengths) - sharp**2)


def _checked_picture(picture: np.ndarray, name: str) -> np.ndarray:
    if not isinstance(picture, np.ndarray) or picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype.kind != "f":
        described = f"{picture.dtype} {picture.shape}" if isinstance(picture, np.ndarray) else type(picture).__name__
        raise InputError(
            f"{name} is {described}, wanted a floating-point array (H, W, 3) of display values in [0, 1]."
        )
    if min(picture.shape[:2]) < 32:
        raise InputError(f"{name} has the shape {picture.shape}, wanted 32 pixels or more on each side.")
    low, high = picture.min(), picture.max()
    if not (low >= 0 and high <= 1):
        raise InputError(f"{name} spans [{low:g}, {high:g}], wanted finite display values in [0, 1].")
    return np.ascontiguousarray(picture.transpose(2, 0, 1), dtype=np.float32)


def make_bracket(
    sharp: np.ndarray,
    frames: Sequence[np.ndarray] | np.ndarray,
    bokeh_strengths: Sequence[float] | np.ndarray,
    sharp_bokeh_strength: float,
    window_px: int | None,
) -> Bracket:
    """Check the frames and bring them to one exposure and place; arguments are those of `depth_from_sweep`.

    Raises:
        InputError: shapes, ranges or counts are wrong.
    """
    reference = _checked_picture(sharp, "sharp")
    relative = relative_strengths(bokeh_strengths, sharp_bokeh_strength)
    if len(frames) != relative.size:
        raise InputError(f"bokeh_strengths has {relative.size} values for {len(frames)} frames, wanted one for each.")
    others = [_checked_picture(frame, f"frames[{index}]") for index, frame in enumerate(frames)]
    for index, other in enumerate(others):
        if other.shape != reference.shape:
            raise InputError(
                f"frames[{index}] has {other.shape[2]} x {other.shape[1]} pixels, wanted those of the sharp frame, "
                f"{reference.shape[2]} x {reference.shape[1]}."
            )
    width_px = reference.shape[2]
    if window_px is None:
        window_px = 2 * round((_WINDOW_PX * max(1.0, width_px / REFERENCE_WIDTH_PX) - 1) / 2) + 1
    elif isinstance(window_px, bool) or not isinstance(window_px, int) or not 3 <= window_px <= 255:
        raise InputError(f"window_px is {window_px!r}, wanted a whole number of pixels from 3 to 255.")
    scale = width_px / REFERENCE_WIDTH_PX
    noise = max(min(map(_noise, (reference, *others))), _ROUNDING_NOISE)
    light = reference**GAMMA
    matched, gains = zip(*(_match_exposure(light, other) for other in others), strict=True)
    shifts_px = [_shift_px(reference, other) for other in matched]
    placed = [_placed(other, shift_px) for other, shift_px in zip(matched, shifts_px, strict=True)]
    return Bracket(
        light=light,
        frames=np.stack(placed),
        slopes_px=relative * scale,
        full_slopes_px=np.asarray(bokeh_strengths, dtype=np.float64) * scale,
        noise=noise,
        gains=np.array(gains),
        shifts_px=np.array(shifts_px),
        window_px=window_px,
    )


def _noise(picture: np.ndarray) -> float:
    """Noise of ``(3, H, W)`` from its mixed second difference, whose median texture hardly reaches in blurred frames.

    Texture only adds to it, so the least over the frames is taken for all.
    """
    rows = picture[:, 2:] - 2 * picture[:, 1:-1] + picture[:, :-2]
    mixed = rows[..., 2:] - 2 * rows[..., 1:-1] + rows[..., :-2]
    # The nine weights have the squared sum 36; 0.6745 is the median of the absolute normal deviate.
    return float(np.median(np.abs(mixed))) / 6 / 0.6745


def _match_exposure(light: np.ndarray, frame: np.ndarray) -> tuple[np.ndarray, tuple[float, float]]:
    """Bring a frame to the exposure and vignetting of the sharp one; also the gain at the centre and in the corners.

    The logarithm of the gain is one number, or a polynomial in the squared distance from the centre, as vignetting is,
    fitted with least absolute deviations to the light of blocks. Blur moves light between blocks too, so vignetting is
    believed only where it takes away a good part of the deviations.
    """
    _, height, width = light.shape
    block = max(8, min(height, width) // 8)
    rows, columns = height // block, width // block

    def block_means(values: np.ndarray) -> np.ndarray:
        cut = values[:, : rows * block, : columns * block]
        return cut.reshape(3, rows, block, columns, block).mean(axis=(0, 2, 4), dtype=np.float64).ravel()

    def radial(y_px: np.ndarray, x_px: np.ndarray) -> np.ndarray:
        squared = ((y_px - height / 2) ** 2 + (x_px - width / 2) ** 2) / ((height / 2) ** 2 + (width / 2) ** 2)
        return np.stack([np.ones_like(squared), squared, squared**2], axis=-1)

    frame_light = frame**GAMMA
    before, after = block_means(light), block_means(frame_light)
    exposure = math.log((float(frame_light.mean(dtype=np.float64)) + _DARK) / (float(light.mean()) + _DARK))
    log_ratio = np.log((after + _DARK) / (before + _DARK)) - exposure
    y_px, x_px = np.meshgrid((np.arange(rows) + 0.5) * block, (np.arange(columns) + 0.5) * block, indexing="ij")
    terms = radial(y_px.ravel(), x_px.ravel())
    weights = before / (before + 100 * _DARK)  # dark blocks tell little
    fit = np.zeros(3)
    for _ in range(20):
        root = np.sqrt(weights / np.maximum(np.abs(log_ratio - terms @ fit), 1e-3))
        # The slight ridge decides where a picture has too few blocks to tell the terms apart.
        system = np.concatenate([terms * root[:, None], np.diag([1e-6, 1e-3, 1e-3])])
        fit = np.linalg.lstsq(system, np.concatenate([log_ratio * root, np.zeros(3)]), rcond=None)[0]
    if weights @ np.abs(log_ratio - terms @ fit) > _VIGNETTING_LEAVES * (weights @ np.abs(log_ratio)):
        fit = np.zeros(3)
    fit[0] += exposure
    field = radial(*np.meshgrid(np.arange(height) + 0.5, np.arange(width) + 0.5, indexing="ij")) @ fit
    matched = frame * np.exp(-field / GAMMA).astype(np.float32)
    return matched, (float(np.exp(fit[0])), float(np.exp(fit.sum())))


def _shift_px(reference: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """Pixels down and to the right by which a frame lies beside the sharp one, (2,): a mirror slaps, a tripod gives.

    Differences of band-passed patches all over the picture are explained by their slopes with least absolute
    deviations. Blur is even, a shift is odd, so blur hardly counts; a shift is believed only where it takes away a
    good part of the differences.
    """
    _, height, width = reference.shape
    rows, columns = min(height // 3, _PATCH_PX), min(width // 3, _PATCH_PX)
    patches = [
        np.s_[:, top : top + rows, left : left + columns]
        for top in np.linspace(0, height - rows, 3).astype(int)
        for left in np.linspace(0, width - columns, 3).astype(int)
    ]
    inner = np.s_[_PATCH_MARGIN_PX:-_PATCH_MARGIN_PX, _PATCH_MARGIN_PX:-_PATCH_MARGIN_PX]
    pairs = [tuple(_details(picture[patch].mean(axis=0)) for picture in (reference, frame)) for patch in patches]

    def differences(shift_px: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        errors, slopes = [], []
        for sharp, other in pairs:
            moved = ndimage.shift(other, -shift_px, order=1, mode="nearest")
            errors.append((moved - sharp)[inner].ravel())
            slopes.append([slope[inner].ravel() for slope in np.gradient((moved + sharp) / 2)])
        return np.concatenate(errors), np.concatenate(slopes, axis=1)

    shift_px = np.zeros(2)
    first, slopes = differences(shift_px)
    error = first
    for _ in range(12):
        size = np.abs(error)
        weighted = slopes / (size + float(size.mean()) + 1e-6)
        # Where there is nothing to see along a direction, the least shift is taken.
        shift_px = shift_px - np.linalg.lstsq(weighted @ slopes.T, weighted @ error, rcond=1e-4)[0]
        if np.abs(shift_px).max() > LARGEST_SHIFT_PX:
            return np.zeros(2)
        error, slopes = differences(shift_px)
    return shift_px if np.abs(error).mean() < _SHIFT_LEAVES * np.abs(first).mean() else np.zeros(2)


def _details(grey: np.ndarray) -> np.ndarray:
    """What noise and slow gradients leave: a gradient that is a little brighter looks like one that has moved."""
    return ndimage.gaussian_filter(grey, _LOW_PASS_PX) - ndimage.gaussian_filter(grey, 6 * _LOW_PASS_PX)


def _placed(frame: np.ndarray, shift_px: np.ndarray) -> np.ndarray:
    """Move a frame (3, H, W) back over the sharp one, by Lanczos' kernel of three lobes along rows and columns."""
    for axis, shift in enumerate(shift_px, 1):
        if shift:
            reach = math.ceil(LARGEST_SHIFT_PX) + 3
            places = np.arange(-reach, reach + 1) - shift
            weights = np.where(np.abs(places) < 3, np.sinc(places) * np.sinc(places / 3), 0)
            frame = ndimage.correlate1d(frame, weights / weights.sum(), axis=axis, mode="nearest")
    return frame


def _ladder(top_px: float) -> np.ndarray:
    """Radii from "sharp" to the first one at or above ``top_px``, in steps of a tenth, at least 0.2 px."""
    radii = [_SHARP_RADIUS_PX]
    while radii[-1] < top_px:
        radii.append(radii[-1] + max(0.2, 0.1 * radii[-1]))
    return np.array(radii)


def _largest_radius_px(bracket: Bracket, max_offset_dpt: float) -> float:
    wanted = float(bracket.slopes_px.max()) * max_offset_dpt
    if wanted < _LEAST_TOP_RADIUS_PX:
        raise InputError(
            f"bokeh_strengths blur the largest offset searched, {max_offset_dpt:.3g} dioptres, by {wanted:.2g} pixels "
            f"of radius more than the sharp frame, wanted {_LEAST_TOP_RADIUS_PX:g} or more: wider apertures."
        )
    return min(wanted, _LARGEST_RADIUS_SHARE * min(bracket.light.shape[1:]))


def _blurred_ladder(light: np.ndarray, radii_px: np.ndarray, pad_px: int) -> tuple[np.ndarray, np.ndarray]:
    """Blur padded light ``(3, H + 2 pad, W + 2 pad)`` by each radius: display values (M, 3, H, W), kernel energies."""
    height, width = (size - 2 * pad_px for size in light.shape[1:])
    shape = tuple(scipy.fft.next_fast_len(size, real=True) for size in light.shape[1:])
    spectrum = scipy.fft.rfft2(light, shape, workers=1)
    out = np.empty((radii_px.size, 3, height, width), dtype=np.float32)
    energies = np.empty(radii_px.size)
    for index, radius in enumerate(radii_px):
        kernel = disk_kernel(radius)
        energies[index] = np.square(kernel, dtype=np.float64).sum()
        shift = pad_px + kernel.shape[0] // 2
        blurred = scipy.fft.irfft2(spectrum * scipy.fft.rfft2(kernel, shape, workers=1), shape, workers=1)
        np.clip(blurred[:, shift : shift + height, shift : shift + width], 0, None, out=out[index])
        out[index] **= np.float32(1 / GAMMA)
    return out, energies


def _tiles(height: int, width: int) -> Iterator[tuple[slice, slice]]:
    for top in range(0, height, _TILE_PX):
        for left in range(0, width, _TILE_PX):
            yield slice(top, min(top + _TILE_PX, height)), slice(left, min(left + _TILE_PX, width))


def _widened(part: slice, by: int, size: int) -> slice:
    return slice(max(part.start - by, 0), min(part.stop + by, size))


@dataclass(frozen=True)
class OffsetFit:
    """What was fitted to each of G groups of frames.

    Attributes:
        offset_dpt: float32 (G, H, W), dioptres; 0 where less than half a pixel of blur is seen.
        std_dpt: float32 (G, H, W), its standard error, ``inf`` where the misfit does not depend on it.
        misfit: float32 (G, H, W), what the best offset leaves unexplained beyond the noise, as a share of the largest
            misfit that counts; at most 1.
        at_end: bool (G, H, W), where the best offset is the largest one tried.
        contradiction: float64 (G,), share in [0, 1] of the blur in the frames of a group, each taken by itself, that
            no offset common to them explains: labels that are out of proportion, whatever the scene. 0 for one frame
            alone and where no blur is seen.
    """

    offset_dpt: np.ndarray
    std_dpt: np.ndarray
    misfit: np.ndarray
    at_end: np.ndarray
    contradiction: np.ndarray


def fit_offsets(bracket: Bracket, groups: Sequence[Sequence[int]], max_offset_dpt: float) -> OffsetFit:
    """Fit one offset to each group of frames, tile by tile: what is held at once does not grow with the picture.

    Args:
        bracket: the frames.
        groups: G groups of frame numbers; the misfits of a group are added along Eq. 26.
        max_offset_dpt: largest offset tried, in dioptres; its radius is bounded by a quarter of the shorter side.

    Returns:
        The offsets.

    Raises:
        InputError: the largest offset is blurred by less than one pixel in every frame.
    """
    _, height, width = bracket.light.shape
    top_px = _largest_radius_px(bracket, max_offset_dpt)
    radii_px = _ladder(top_px)
    pad_px = math.ceil(radii_px[-1]) + 1
    margin_px = _CELL_PX // 2 + bracket.window_px // 2 + 1
    padded = np.pad(bracket.light, ((0, 0), (pad_px, pad_px), (pad_px, pad_px)), mode="edge")
    kinds = (np.float32, np.float32, np.float32, bool)
    result = OffsetFit(*(np.empty((len(groups), height, width), dtype) for dtype in kinds), np.zeros(len(groups)))
    blur = np.zeros((len(groups), 2))  # what frames explain by themselves, and what of it they do not together
    for core in _tiles(height, width):
        region = tuple(_widened(part, margin_px, size) for part, size in zip(core, (height, width), strict=True))
        source = padded[
            :, region[0].start : region[0].stop + 2 * pad_px, region[1].start : region[1].stop + 2 * pad_px
        ]
        blurred, energies = _blurred_ladder(source, radii_px, pad_px)
        inner = tuple(
            slice(part.start - wide.start, part.stop - wide.start) for part, wide in zip(core, region, strict=True)
        )
        for number, group in enumerate(groups):
            slopes = bracket.slopes_px[list(group)]
            # The steepest frame of the group walks the ladder, the others follow it (Eq. 26).
            reach_px = min(float(slopes.max()) * max_offset_dpt, top_px)
            count = min(int(np.searchsorted(radii_px, reach_px)) + 1, radii_px.size)
            # A frame that hardly blurs what is searched still gets the three steps that a minimum takes.
            walk_px = radii_px[:count] if count >= 3 else np.linspace(0, reach_px, 3)
            offsets = walk_px / slopes.max()
            costs = np.empty((len(offsets), *blurred.shape[2:]), dtype=np.float32)
            from_noise = np.empty(len(offsets))
            alone = np.full((len(group), *blurred.shape[2:]), np.inf, dtype=np.float32)
            for step, offset in enumerate(offsets):
                each, from_noise[step] = _costs(bracket, group, region, offset, radii_px, blurred, energies)
                costs[step] = each.sum(axis=0)
                np.minimum(alone, each, out=alone)
            costs = costs[(slice(None), *inner)]
            if len(group) > 1:
                blur[number] += _contradiction(costs, alone[(slice(None), *inner)].sum(axis=0), len(group), bracket)
            parts = _minimum(costs, offsets, from_noise, len(group), bracket)
            wholes = result.offset_dpt, result.std_dpt, result.misfit, result.at_end
            for whole, part in zip(wholes, parts, strict=True):
                whole[(number, *core)] = part
    np.divide(blur[:, 1], blur[:, 0], out=result.contradiction, where=blur[:, 0] > 0)
    return result


def _contradiction(costs: np.ndarray, alone: np.ndarray, frame_count: int, bracket: Bracket) -> tuple[float, float]:
    """Sum what the frames' own best offsets take away of the misfit of no blur, and what a common offset leaves of it.

    ``costs`` (M, H, W) is the misfit of all frames at each step, no blur first, and ``alone`` (H, W) the least misfit
    of each frame at a step of its own, added up. Both sums are over pixels whose blur stands out from the noise.
    """
    explained = costs[0] - alone
    seen = explained > frame_count * max(bracket.noise**2, _SEEN_BLUR * _largest_misfit(bracket))
    left = np.minimum(costs.min(axis=0) - alone, explained)
    return float(explained[seen].sum(dtype=np.float64)), float(left[seen].sum(dtype=np.float64))


def _costs(
    bracket: Bracket,
    group: Sequence[int],
    region: tuple[slice, slice],
    offset_dpt: float,
    radii_px: np.ndarray,
    blurred: np.ndarray,
    energies: np.ndarray,
) -> tuple[np.ndarray, float]:
    """Windowed misfit of each frame of a group at one offset, (F, H, W): squared display values, less those of noise.

    The second result is how much of their sum the noise of the blurred sharp frame was expected to be.
    """
    each = np.empty((len(group), *blurred.shape[2:]), dtype=np.float32)
    from_noise = 0.0
    variance = bracket.noise**2
    bound = _largest_misfit(bracket)
    for number, index in enumerate(group):
        radius_px = max(float(bracket.slopes_px[index]) * offset_dpt, _SHARP_RADIUS_PX)
        place = float(np.interp(radius_px, radii_px, np.arange(radii_px.size)))
        low = min(int(place), radii_px.size - 2)
        share = np.float32(place - low)
        residual = blurred[low] * (1 - share)
        residual += blurred[low + 1] * share
        residual -= bracket.frames[(index, slice(None), *region)]
        squares = np.einsum("chw,chw->hw", residual, residual)
        cells = ndimage.uniform_filter(squares, _CELL_PX, mode="nearest")
        # The sharp frame's noise is blurred along with it: without this, flat areas would prefer large radii.
        energy = energies[low] * (1 - share) + energies[low + 1] * share
        cells -= np.float32(3 * variance * (1 + energy))
        from_noise += 3 * variance * float(energy)
        cells /= 1 + np.maximum(cells, 0) / np.float32(bound)
        each[number] = ndimage.uniform_filter(cells, bracket.window_px, mode="nearest")
    return each, from_noise


def _largest_misfit(bracket: Bracket) -> float:
    """Bound of the misfit of one frame: squared display values."""
    return _MISFIT**2 + bracket.noise**2


def _minimum(
    costs: np.ndarray, offsets: np.ndarray, from_noise: np.ndarray, frame_count: int, bracket: Bracket
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Place of the least cost by a parabola through three steps, its error, its misfit, and whether it is the last."""
    last = offsets.size - 1
    best = costs.argmin(axis=0)
    middle = np.clip(best, 1, last - 1)

    def at(step: np.ndarray) -> np.ndarray:
        return np.take_along_axis(costs, step[None], axis=0)[0].astype(np.float64)

    low, centre, high = offsets[middle - 1], offsets[middle], offsets[middle + 1]
    slope_low = (at(middle) - at(middle - 1)) / (centre - low)
    slope_high = (at(middle + 1) - at(middle)) / (high - centre)
    curvature = np.maximum((slope_high - slope_low) / (high - low), 1e-12)
    vertex = np.clip(0.5 * (low + centre) - 0.5 * slope_low / curvature, low, high)
    offset = np.where((best == 0) | (best == last), np.where(best == 0, 0.0, offsets[last]), vertex)

    # How steeply the cost rises on the flatter side says how well it tells offsets apart. Three steps, a third of
    # the radius, since the noise of the cost itself decides over neighbouring ones. That noise is the product of the
    # frames' and of the difference of the two blurred pictures, whose own noise has the energy of two nested disks.
    least, count = at(best), bracket.window_px**2
    rises = []
    for step in (np.maximum(best - 3, 0), np.minimum(best + 3, last)):
        span = np.abs(offsets[step] - offsets[best])
        rise = np.maximum(at(step) - least, 0.0)
        deviation = 2 * bracket.noise * np.sqrt((rise + np.abs(from_noise[step] - from_noise[best])) / count)
        rise = np.maximum(rise - _CHANCE * deviation, 0.0) / np.where(span > 0, span**2, 1.0)
        rises.append(np.where(span > 0, rise, np.inf))
    flatter = np.minimum(*rises)
    variance = bracket.noise**2 + np.maximum(least, 0) / (3 * frame_count)
    with np.errstate(divide="ignore"):
        std = np.sqrt(variance / (count * flatter))
    return offset, std, least / (frame_count * _largest_misfit(bracket)), best == last


def radius_tolerance_px(radius_px: np.ndarray) -> np.ndarray:
    """Error in pixels up to which a radius counts as right: a tenth of it or half a pixel, the larger of both."""
    return np.maximum(_TOLERANCE_SHARE * radius_px, _TOLERANCE_PX)


def label_confidence(contradiction: float) -> float:
    """How far the labels of a bracket are to be believed, by how well one offset explains the blur of all frames.

    It is a factor in [0, 1] for the confidence of all pixels: depth scales with the labels where blur is seen, too.
    """
    return float(np.clip((_OUT_OF_PROPORTION - contradiction) / (_OUT_OF_PROPORTION - _IN_PROPORTION), 0, 1))


def fit_confidence(std_px: np.ndarray, radius_px: np.ndarray, misfit: np.ndarray, at_end: np.ndarray) -> np.ndarray:
    """Probability, for normal errors, that a radius is right to within `radius_tolerance_px`; less where it misfits.

    Frames that no blur explains have the wrong K, another scene, or an edge in front of them: the best of bad radii
    may be sharp and still mean nothing. Where the search ended at its bound the result is 0. All are of one shape.
    """
    with np.errstate(divide="ignore"):
        share = special.erf(radius_tolerance_px(radius_px) / (np.sqrt(2) * std_px))
    share *= np.clip((_UNEXPLAINED - misfit) / (_UNEXPLAINED - _EXPLAINED), 0, 1)
    return np.where(at_end, 0.0, share).astype(np.float32)
