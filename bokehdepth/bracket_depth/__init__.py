"""Depth from a bokeh sweep: blur measured in a bracket of apertures, then Eq. 26, 28 and 34 (sections 4.1.1 and 9).

The sharp frame, blurred by a disk in linear light, is compared with each wider frame (Eq. 19) for a ladder of radii.
Two estimators read the disparity offset off these comparisons:

* ``"per_frame"``, the textbook one: a radius for each frame, then least squares through the origin (Eq. 27, 28).
* ``"joint"``, the default: Eq. 26 ties the radii of all frames to one offset, so the residuals are added along it and
  one minimum is sought. Its typical error is smaller and more of its pixels are confident; under strong noise its
  rare gross errors are larger, since no second frame averages them out.

The sharp frame of a real bracket is blurred too, with its own K0. Second moments of disks add up, so the blur between
the two has the strength ``sqrt(K^2 - K0^2)``; where the sharp frame is the photo itself, K0 is 0.

Blur is the same on both sides of the focus (Eq. 33): 1.2 m and 6 m look alike through a lens focused at 2 m. A rough
depth, from a network, say, tells the sides apart where it is good enough; where nothing does, the confidence is low.

What this cannot do: see blur below half a pixel, find an offset where there is no texture, or follow a camera that
moved between the frames, beyond a shift of the picture by three pixels. No torch import.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from scipy import special

from ..camera.lens import check_number, depth_from_disparity_offset_m, disparity_offset_from_sweep
from ..errors import InputError
from ..rendering.scatter import GAMMA
from .fit import fit_confidence, fit_offsets, label_confidence, make_bracket, radius_tolerance_px

Estimator = Literal["joint", "per_frame"]
Side = Literal["behind", "front", "auto"]

LOW_CONFIDENCE = 0.5
"""Confidence below which a pixel counts as not measured: an error above a tenth of the radius is the likelier."""

_SEARCH_MARGIN = 1.15  # offsets behind infinity that are searched, so that infinity is no end of the ladder
_SURE_STDS = 2.0  # standard errors beyond an end of the range that rule a side out
_SCALE_SPREAD = 0.5  # standard deviation of the logarithm of a small network's scale, before the blur is seen
_ROUGH_SPREAD, _LEAST_SPREAD = 0.4, 0.1  # of the logarithm of its depth at one pixel, before and after
_REGIONS = 8  # of a picture that err independently in a rough depth
_GAINS = (0.0, 0.5, 1.0)  # how much of the depth a rough one follows: nothing at all is as likely as all
_FARTHEST_DPT = 0.01  # beyond it, or twice the focus distance where that is more, depths are one
_LITTLE_SHARE = 0.01  # of a probability: less is left out


@dataclass(frozen=True)
class SweepDepth:
    """Depth from a bokeh sweep.

    Attributes:
        depth_m: float32 (H, W), metres; finite where ``valid``, elsewhere NaN.
        disparity_offset_dpt: float32 (H, W), ``|1/S1 - 1/S2|`` in dioptres.
        radii_px: float32 (F, H, W), blur radius of each frame: measured (``"per_frame"``) or ``K * scale * offset``.
        std_dpt: float32 (H, W), standard error of the offset in dioptres, ``inf`` where there is no texture. It is
            that of the measurement, for filled pixels too.
        confidence: float32 (H, W) in [0, 1], that of the measurement times that of the side and of the labels; 0 where
            the search ended at its bound.
        behind_focus: bool (H, W), the side that was taken (Eq. 33).
        side_confidence: float32 (H, W) in [0, 1], how much likelier that side is than the other one, the difference of
            their probabilities; 1 where the caller said it or so little is out of focus that it does not matter.
        valid: bool (H, W), where there is a depth.
        beyond: bool (H, W), where there is none because it would be farther than ``max_depth_m``, infinity included.
        filled: bool (H, W), where the offset was spread from confident neighbours and not measured.
        estimator: ``"joint"`` or ``"per_frame"``.
        side: ``"behind"``, ``"front"``, ``"auto"`` or ``"mask"``.
        side_told_by: ``"caller"``, ``"rough depth"``, or ``"range"``: where an offset fits into the range of depths on
            one side only, and nothing elsewhere.
        rough_depth_scale: factor by which the rough depth fits the measured offsets best; None without one.
        noise: standard deviation of the noise that was found, in display values.
        gains: float (F, 2), light of each frame over that of the sharp one, at the centre and in the corners.
        shifts_px: float (F, 2), pixels down and to the right by which each frame lay beside the sharp one and was
            moved back.
        contradiction: share in [0, 1] of the blur in the frames that no offset common to them explains, as when a K is
            another frame's. From 0.1 on it lowers the confidence of all pixels, to 0 at 0.25.
    """

    depth_m: np.ndarray
    disparity_offset_dpt: np.ndarray
    radii_px: np.ndarray
    std_dpt: np.ndarray
    confidence: np.ndarray
    behind_focus: np.ndarray
    side_confidence: np.ndarray
    valid: np.ndarray
    beyond: np.ndarray
    filled: np.ndarray
    estimator: str
    side: str
    side_told_by: str
    rough_depth_scale: float | None
    noise: float
    gains: np.ndarray
    shifts_px: np.ndarray
    contradiction: float

    def summary(self) -> dict[str, object]:
        """What a record says of the method: plain numbers, and shares of the pixels under names that end so."""
        names = ("estimator", "side", "side_told_by", "rough_depth_scale", "noise", "contradiction")
        shares = {
            "low_confidence": self.confidence < LOW_CONFIDENCE,
            "filled": self.filled,
            "beyond": self.beyond,
            "invalid": ~self.valid,
            "front": ~self.behind_focus,
            "side_unknown": self.side_confidence < LOW_CONFIDENCE,
        }
        return {
            "method": "sweep",
            **{name: getattr(self, name) for name in names},
            "gains": self.gains.tolist(),
            "shifts_px": self.shifts_px.tolist(),
            "low_confidence": LOW_CONFIDENCE,
            **{f"{name}_share": float(mask.mean()) for name, mask in shares.items()},
        }


def depth_from_sweep(
    sharp: np.ndarray,
    frames: Sequence[np.ndarray] | np.ndarray,
    bokeh_strengths: Sequence[float] | np.ndarray,
    focus_distance_m: float,
    *,
    side: Side | np.ndarray = "auto",
    rough_depth_m: np.ndarray | None = None,
    sharp_bokeh_strength: float = 0.0,
    estimator: Estimator = "joint",
    min_depth_m: float = 0.3,
    max_depth_m: float = 100.0,
    window_px: int | None = None,
    fill_low_confidence: bool = False,
) -> SweepDepth:
    """Estimate metric depth from a bracket of apertures at one focus (Eq. 19, 26, 28, 34).

    Blur alone does not tell the sides of the focus apart (Eq. 33), so ``side`` or a rough depth says it; where neither
    does, depth is that behind the focus and its confidence below ``LOW_CONFIDENCE``. Near infinity noise carries
    the offset beyond 1/S1, where Eq. 34 has no depth: pixels farther than ``max_depth_m`` have NaN and are marked
    ``beyond``; so has a pixel whose best offset is the last one searched. Nothing is clamped.

    Args:
        sharp: (H, W, 3) floating point, display values in [0, 1]: the frame with the smallest aperture.
        frames: F pictures of this kind and size, any order.
        bokeh_strengths: (F,) K of the frames at 512 px width, above ``sharp_bokeh_strength``; not limited to 30.
        focus_distance_m: focus distance S1 in metres, the same for all frames; ``math.inf``: nothing lies behind it.
        side: ``"auto"``: by ``rough_depth_m``, whose scale is first fitted to the confident offsets, within a factor
            of 4, and by the range of depths; or the caller's word: all ``"behind"`` the focus, all in ``"front"``, or
            a boolean (H, W) that is True behind.
        rough_depth_m: (H, W) metres, above 0, from a depth model, say; for ``"auto"`` alone. Without it an offset
            tells its side only where the other one has no such depth: nearer than ``min_depth_m``, or beyond infinity.
        sharp_bokeh_strength: K0 of the sharp frame: 0 where it is the photo that the frames were made from.
        estimator: ``"joint"`` or ``"per_frame"`` (Eq. 28), see the module.
        min_depth_m: nearest depth searched in front of the focus.
        max_depth_m: largest depth that is told from infinity.
        window_px: side of the window that sums misfits; 9 at up to 512 px width, proportionally more above, when None.
        fill_low_confidence: whether pixels whose offset is measured with less than ``LOW_CONFIDENCE`` take that of
            confident ones, spread along the sharp frame's colours and not across its edges. They are marked
            ``filled``.

    Returns:
        Depth, offset, their errors and masks.

    Raises:
        InputError: shapes, ranges or counts are wrong, arguments contradict each other, or the largest offset is
            blurred by less than one pixel.
    """
    if estimator not in get_args(Estimator):
        raise InputError(f"estimator is {estimator!r}, wanted one of {', '.join(get_args(Estimator))}.")
    focus_m = check_number(focus_distance_m, "focus_distance_m", "m", infinity=True)
    max_depth_m = check_number(max_depth_m, "max_depth_m", "m")
    min_depth_m = check_number(min_depth_m, "min_depth_m", "m")
    bracket = make_bracket(sharp, frames, bokeh_strengths, sharp_bokeh_strength, window_px)
    size = bracket.light.shape[1:]
    side_name, mask, rough = _checked_side(side, rough_depth_m, size)
    has_behind, has_front = (math.isfinite(focus_m), True) if mask is None else (mask.any(), not mask.all())
    max_offset = _largest_offset_dpt(focus_m, min_depth_m, max_depth_m, has_behind, has_front)

    together = range(len(bracket.frames))
    slopes_px = bracket.full_slopes_px[:, None, None].astype(np.float32)
    if estimator == "joint":
        fit = fit_offsets(bracket, [together], max_offset)
        offset, std, misfit, at_end = fit.offset_dpt[0], fit.std_dpt[0], fit.misfit[0], fit.at_end[0]
        radii_px = None
    else:
        fit = fit_offsets(bracket, [*([index] for index in together), together], max_offset)
        radii_px, misfit = fit.offset_dpt[:-1] * slopes_px, fit.misfit[:-1].mean(axis=0)
        at_end = fit.at_end[:-1].any(axis=0)
        offset = disparity_offset_from_sweep(np.asarray(bokeh_strengths, dtype=np.float64), radii_px, size[1])
        squares = np.square(slopes_px, dtype=np.float64)
        std = np.sqrt(np.sum((squares * fit.std_dpt[:-1]) ** 2, axis=0)) / np.sum(squares)  # Eq. 32
    widest_px = bracket.full_slopes_px.max()
    contradiction = float(fit.contradiction[-1])
    confidence = fit_confidence(std * widest_px, offset * widest_px, misfit, at_end)
    confident, filled = confidence >= LOW_CONFIDENCE, np.zeros(size, dtype=bool)
    if fill_low_confidence and confident.any():
        spread = _spread(offset, np.where(confident, confidence, 0), bracket.light ** np.float32(1 / GAMMA))
        filled = ~confident
        offset, at_end = np.where(filled, spread, offset), at_end & ~filled
    offset = offset.astype(np.float32)

    scale, told_by, side_confidence = None, "caller", np.ones(size, dtype=np.float32)
    if mask is None:
        told_by = "range" if rough is None else "rough depth"
        weights = np.where(confident & ~filled, confidence, 0)
        mask, side_confidence, scale = _sides(rough, offset, std, weights, focus_m, min_depth_m)
        # On the wrong side the radius is off by twice itself.
        matters = 2 * offset * widest_px > radius_tolerance_px(offset * widest_px)
        side_confidence = np.where(matters, side_confidence, np.float32(1))
        confidence = confidence * side_confidence
    confidence = confidence * np.float32(label_confidence(contradiction))
    depth = np.asarray(depth_from_disparity_offset_m(offset, focus_m, mask), dtype=np.float32)
    beyond = depth > max_depth_m
    valid = ~beyond & ~at_end
    return SweepDepth(
        depth_m=np.where(valid, depth, np.float32(np.nan)),
        disparity_offset_dpt=offset,
        radii_px=offset * slopes_px if radii_px is None else radii_px,
        std_dpt=std.astype(np.float32),
        confidence=confidence,
        behind_focus=mask,
        side_confidence=side_confidence,
        valid=valid,
        beyond=beyond,
        filled=filled,
        estimator=estimator,
        side=side_name,
        side_told_by=told_by,
        rough_depth_scale=scale,
        noise=bracket.noise,
        gains=bracket.gains,
        shifts_px=bracket.shifts_px,
        contradiction=contradiction,
    )


def _checked_side(
    side: Side | np.ndarray, rough_depth_m: np.ndarray | None, size: tuple[int, int]
) -> tuple[str, np.ndarray | None, np.ndarray | None]:
    """Return the side's name, the mask of what is behind (None for ``"auto"``) and the rough depth for ``"auto"``."""
    is_auto = isinstance(side, str) and side == "auto"
    if rough_depth_m is not None and not is_auto:
        raise InputError("rough_depth_m is given, wanted none unless side is 'auto'.")
    if isinstance(side, np.ndarray):
        if side.dtype != bool or side.shape != size:
            raise InputError(f"side is {side.dtype} {side.shape}, wanted a boolean array of the shape {size}.")
        return "mask", side, None
    if side not in get_args(Side):
        raise InputError(f"side is {side!r}, wanted 'behind', 'front', 'auto' or a boolean array (H, W).")
    if not is_auto:
        return side, np.full(size, side == "behind"), None
    rough = rough_depth_m
    if rough is None:
        return side, None, None
    if not isinstance(rough, np.ndarray) or rough.shape != size or rough.dtype.kind != "f":
        described = f"{rough.dtype} {rough.shape}" if isinstance(rough, np.ndarray) else type(rough).__name__
        raise InputError(f"rough_depth_m is {described}, wanted a floating-point array of the shape {size} in metres.")
    if not (rough > 0).all():
        raise InputError(f"rough_depth_m has the value {rough[~(rough > 0)][0]}, wanted metres above 0 everywhere.")
    return side, None, rough


def _largest_offset_dpt(
    focus_m: float, min_depth_m: float, max_depth_m: float, has_behind: bool, has_front: bool
) -> float:
    if has_behind and not has_front and not math.isfinite(focus_m):
        raise InputError("focus_distance_m is infinite, wanted side='front': nothing lies behind infinity.")
    if has_behind and not max_depth_m > focus_m and math.isfinite(focus_m):
        raise InputError(f"max_depth_m is {max_depth_m:g}, wanted more than the focus distance, {focus_m:g} m.")
    if has_front and not min_depth_m < focus_m:
        raise InputError(f"min_depth_m is {min_depth_m:g}, wanted less than the focus distance, {focus_m:g} m.")
    behind = _SEARCH_MARGIN / focus_m if has_behind else 0.0
    front = 1 / min_depth_m - 1 / focus_m if has_front else 0.0
    return max(behind, front)


def _sides(
    rough_m: np.ndarray | None,
    offset_dpt: np.ndarray,
    std_dpt: np.ndarray,
    weights: np.ndarray,
    focus_m: float,
    min_depth_m: float,
) -> tuple[np.ndarray, np.ndarray, float | None]:
    """Take the likelier side of each pixel: a mask of what is behind, how sure it is, the rough depth's scale."""
    scale, behind = None, np.full(offset_dpt.shape, 0.5 if math.isfinite(focus_m) else 0.0, dtype=np.float32)
    if rough_m is not None:
        scale, behind = _behind_by_rough_depth(rough_m, offset_dpt, weights, focus_m)
    surely_dpt = offset_dpt - _SURE_STDS * std_dpt
    behind[surely_dpt > 1 / min_depth_m - 1 / focus_m] = 1
    behind[surely_dpt > _SEARCH_MARGIN / focus_m] = 0
    mask = behind >= 0.5
    return mask, np.abs(2 * behind - 1), scale


def _behind_by_rough_depth(
    rough_m: np.ndarray, offset_dpt: np.ndarray, weights: np.ndarray, focus_m: float
) -> tuple[float, np.ndarray]:
    """Likeliest scale of a rough depth, and the probability of each pixel to lie behind the focus, float32 (H, W).

    An offset allows two depths (Eq. 34), as likely as each other. The rough depth is taken for one of them, but for
    a scale and normal errors, in logarithms. It may also follow the depth by half, or not at all: a network that sees
    nothing says the same depth everywhere, which is always nearer to the side in front, where depths differ less. So
    the rough depth has to explain the offsets before it is believed; a scene that two scales explain, one with all of
    it in front and one with all behind, stays open as far as both are likely.
    """
    if not math.isfinite(focus_m):
        return 1.0, np.zeros(rough_m.shape, dtype=np.float32)

    def logarithms(rough: np.ndarray, offset: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rough depth, and the depths in front and behind, over the focus distance."""
        farthest = min(_FARTHEST_DPT * focus_m, 0.5)
        back = -np.log(np.maximum(1 - offset * focus_m, farthest))
        return np.log(rough / focus_m), -np.log1p(offset * focus_m), back

    stride = max(1, math.isqrt(rough_m.size // 10_000))
    part, weight = np.s_[::stride, ::stride], weights[::stride, ::stride]
    rough, front, back = logarithms(rough_m[part], offset_dpt[part])
    total = max(float(weight.sum()), np.finfo(np.float64).tiny)
    found = []
    for log_scale in np.linspace(-math.log(4), math.log(4), 57):  # steps of 5 %, 1 among them
        for gain in _GAINS:
            misses = np.minimum(*(np.square(rough + log_scale - gain * side) for side in (front, back)))
            miss = float(np.sum(weight * misses)) / total
            evidence = -_REGIONS * miss / (2 * _ROUGH_SPREAD**2) - (log_scale / _SCALE_SPREAD) ** 2 / 2
            found.append((evidence, log_scale, gain, max(math.sqrt(miss), _LEAST_SPREAD)))
    most = max(found)
    believed = [(math.exp(e - most[0]), *rest) for e, *rest in found if math.exp(e - most[0]) > _LITTLE_SHARE]

    rough, front, back = logarithms(rough_m, offset_dpt)
    behind, total = np.zeros(rough_m.shape), sum(share for share, *_ in believed)
    for share, log_scale, gain, spread in believed:
        # The difference of the two squares that a pixel misses each side by.
        odds = gain * (back - front) * (2 * (rough + log_scale) - gain * (back + front)) / (2 * spread**2)
        behind += share / total * special.expit(odds)
    return math.exp(most[1]), behind.astype(np.float32)


def _spread(offset_dpt: np.ndarray, weights: np.ndarray, picture: np.ndarray) -> np.ndarray:
    """Mean of the offsets (H, W) by weights that reach along the colours of the picture (3, H, W), not across edges.

    Weighted offsets and weights are smoothed alike, by rows and columns in turn, and divided. Each smoothing minimises
    ``sum (u - v)^2 + strength sum tie (u - u')^2``, where the tie of two neighbours is weak across an edge.
    """
    data, mass = weights * offset_dpt.astype(np.float64), weights.astype(np.float64)
    ties = []
    for axis in (1, 2):
        step = np.abs(np.diff(picture, axis=axis)).sum(axis=0)
        ties.append(np.exp(-step / 0.06) + 1e-4)
    for strength in (1024.0, 256.0, 64.0):
        for axis in (1, 0):
            a = strength * ties[axis]
            lines = a if axis == 0 else a.T
            both = np.stack([data, mass] if axis == 0 else [data.T, mass.T])
            data, mass = (solved if axis == 0 else solved.T for solved in _solve_lines(lines, both))
    return data / np.maximum(mass, np.finfo(np.float64).tiny)


def _solve_lines(ties: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Solve ``u + L u = values`` along axis 0 of ``(N, W)``; ``ties`` ``(N - 1, W)`` make the Laplacian L."""
    count = values.shape[1]
    upper = np.empty_like(ties)
    out = np.empty_like(values)
    for row in range(count):
        before = ties[row - 1] if row else 0.0
        after = ties[row] if row < count - 1 else 0.0
        pivot = 1 + before + after - (before * upper[row - 1] if row else 0.0)
        if row < count - 1:
            upper[row] = after / pivot
        out[:, row] = (values[:, row] + (before * out[:, row - 1] if row else 0.0)) / pivot
    for row in range(count - 2, -1, -1):
        out[:, row] += upper[row] * out[:, row + 1]
    return out
