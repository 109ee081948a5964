"""Error measures of depth, and measures of what a bokeh generator did. NumPy only.

Depth is z-depth in metres, any equal shapes, usually ``(H, W)``. A pixel counts where ``valid`` is true; without
``valid``, where the target is finite and above 0. At a pixel that counts, prediction and target must be finite and
above 0: a prediction with holes is an error, never a smaller average. Pictures are floating point in [0, 1].

Sources: Eigen et al. 2014 (AbsRel, delta, RMSE, the scale-invariant log error); the paper's section 5 reports AbsRel
and delta_1. Selectivity and the K response are this project's controls of Stage-1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bokehdepth.errors import InputError
from bokehdepth.rendering.disk import disk_blur


def _checked_mask(name: str, mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if not (isinstance(mask, np.ndarray) and mask.dtype == np.bool_ and mask.shape == shape):
        described = f"{mask.dtype} {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
        raise InputError(f"{name} is {described}, wanted a bool array {shape}")
    if not mask.any():
        raise InputError(f"{name} is false everywhere, wanted at least one pixel that counts")
    return mask


def _checked_float(name: str, array: np.ndarray, shape: tuple[int, ...] | None = None) -> np.ndarray:
    is_float = isinstance(array, np.ndarray) and np.issubdtype(array.dtype, np.floating)
    if not is_float or (shape is not None and array.shape != shape):
        described = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        wanted = "" if shape is None else f" {shape}"
        raise InputError(f"{name} is {described}, wanted a floating-point array{wanted}")
    return array


def _valid_pairs(
    prediction: np.ndarray, target: np.ndarray, valid: np.ndarray | None, names: tuple[str, str]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the prediction and the target where both count, float64 ``(n,)`` each."""
    _checked_float(names[1], target)
    _checked_float(names[0], prediction, target.shape)
    if valid is None:
        valid = np.isfinite(target) & (target > 0)
        if not valid.any():
            raise InputError(f"{names[1]} {target.shape} has no finite value above 0, wanted at least one")
    _checked_mask("valid", valid, target.shape)
    pair = []
    for name, array in zip(names, (prediction, target), strict=True):
        values = array[valid].astype(np.float64)
        bad = ~(np.isfinite(values) & (values > 0))
        if bad.any():
            raise InputError(
                f"{name} is {values[bad][0]:g} at {bad.sum()} pixels that count, wanted finite and above 0"
            )
        pair.append(values)
    return pair[0], pair[1]


def abs_rel(prediction_m: np.ndarray, target_m: np.ndarray, valid: np.ndarray | None = None) -> float:
    """Average the absolute error relative to the target: ``mean(|p - t| / t)``, without unit.

    Args:
        prediction_m: Predicted depth in metres, float ``(H, W)``.
        target_m: True depth in metres, float ``(H, W)``.
        valid: Pixels that count, bool ``(H, W)``; None: where the target is finite and above 0.

    Returns:
        The mean over the pixels that count; 0 is perfect.

    Raises:
        InputError: If shapes or types differ from the above, no pixel counts, or a depth that counts is not finite and
            above 0.
    """
    prediction, target = _valid_pairs(prediction_m, target_m, valid, ("prediction_m", "target_m"))
    return float(np.mean(np.abs(prediction - target) / target))


def delta(
    prediction_m: np.ndarray,
    target_m: np.ndarray,
    threshold: float = 1.25,
    power: int = 1,
    valid: np.ndarray | None = None,
) -> float:
    """Count the pixels within a factor of the truth: the share with ``max(p/t, t/p) < threshold ** power``.

    Args:
        prediction_m: Predicted depth in metres, float ``(H, W)``.
        target_m: True depth in metres, float ``(H, W)``.
        threshold: The factor, above 1.
        power: 1, 2, 3 for delta_1, delta_2, delta_3.
        valid: Pixels that count, as in ``abs_rel``.

    Returns:
        Share in [0, 1]; 1 is best.

    Raises:
        InputError: As ``abs_rel`` says, or if ``threshold`` is not above 1 or ``power`` not above 0.
    """
    if not (np.isfinite(threshold) and threshold > 1 and power > 0):
        raise InputError(f"threshold is {threshold!r} and power {power!r}, wanted above 1 and above 0")
    prediction, target = _valid_pairs(prediction_m, target_m, valid, ("prediction_m", "target_m"))
    return float(np.mean(np.maximum(prediction / target, target / prediction) < threshold**power))


def rmse(prediction_m: np.ndarray, target_m: np.ndarray, valid: np.ndarray | None = None) -> float:
    """Take the root of the mean squared error, ``sqrt(mean((p - t)^2))``, in metres.

    Args:
        prediction_m: Predicted depth in metres, float ``(H, W)``.
        target_m: True depth in metres, float ``(H, W)``.
        valid: Pixels that count, as in ``abs_rel``.

    Returns:
        Metres.

    Raises:
        InputError: As ``abs_rel`` says.
    """
    prediction, target = _valid_pairs(prediction_m, target_m, valid, ("prediction_m", "target_m"))
    return float(np.sqrt(np.mean((prediction - target) ** 2)))


def log10_error(prediction_m: np.ndarray, target_m: np.ndarray, valid: np.ndarray | None = None) -> float:
    """Average ``|log10(p) - log10(t)|``, without unit.

    Args:
        prediction_m: Predicted depth in metres, float ``(H, W)``.
        target_m: True depth in metres, float ``(H, W)``.
        valid: Pixels that count, as in ``abs_rel``.

    Returns:
        The mean; 0.1 is a factor of 1.26.

    Raises:
        InputError: As ``abs_rel`` says.
    """
    prediction, target = _valid_pairs(prediction_m, target_m, valid, ("prediction_m", "target_m"))
    return float(np.mean(np.abs(np.log10(prediction / target))))


def si_log(
    prediction: np.ndarray, target: np.ndarray, valid: np.ndarray | None = None, *, mean_weight: float = 1.0
) -> float:
    """Scale-invariant log error ``sqrt(mean(g^2) - mean_weight * mean(g)^2)`` with ``g = ln(p) - ln(t)``.

    Args:
        prediction: Predicted depth, float ``(H, W)``; its scale is of no effect at ``mean_weight`` 1.
        target: True depth, float ``(H, W)``.
        valid: Pixels that count, as in ``abs_rel``.
        mean_weight: 1 is the benchmarks' error (the standard deviation of g), 0.5 the training loss of Eigen et al.

    Returns:
        The error in natural-log units; KITTI's table prints 100 times this.

    Raises:
        InputError: As ``abs_rel`` says, or if ``mean_weight`` is not in [0, 1].
    """
    if not 0 <= mean_weight <= 1:
        raise InputError(f"mean_weight is {mean_weight!r}, wanted a number in [0, 1]")
    prediction, target = _valid_pairs(prediction, target, valid, ("prediction", "target"))
    gap = np.log(prediction / target)
    # The variance form: mean(g^2) - mean(g)^2 would lose its digits, or turn negative, when g is nearly constant.
    return float(np.sqrt(np.var(gap) + (1 - mean_weight) * np.mean(gap) ** 2))


def median_scaled(prediction: np.ndarray, target: np.ndarray, valid: np.ndarray | None = None) -> np.ndarray:
    """Give a prediction of unknown scale the median of the target.

    Args:
        prediction: Predicted depth of any scale, float ``(H, W)``.
        target: True depth in metres, float ``(H, W)``.
        valid: Pixels whose medians are compared, as in ``abs_rel``.

    Returns:
        ``prediction * median(target) / median(prediction)``, shape and type of ``prediction``, in metres.

    Raises:
        InputError: As ``abs_rel`` says.
    """
    predicted, true = _valid_pairs(prediction, target, valid, ("prediction", "target"))
    return prediction * prediction.dtype.type(np.median(true) / np.median(predicted))


def psnr(
    image: np.ndarray, reference: np.ndarray, *, mask: np.ndarray | None = None, data_range: float = 1.0
) -> float:
    """Peak signal-to-noise ratio, ``10 log10(data_range^2 / mean((image - reference)^2))``.

    Args:
        image: Floating point ``(H, W)`` or ``(H, W, C)``, finite.
        reference: As ``image``.
        mask: Pixels that count, bool ``(H, W)``; None: all.
        data_range: The largest value minus the smallest that a picture can have.

    Returns:
        Decibels over all channels of the pixels that count; inf where they are equal.

    Raises:
        InputError: If shapes or types differ from the above, a value is not finite, no pixel counts, or
            ``data_range`` is not above 0.
    """
    _checked_float("reference", reference)
    _checked_float("image", image, reference.shape)
    if reference.ndim not in (2, 3) or reference.size == 0:
        raise InputError(f"reference has the shape {reference.shape}, wanted (H, W) or (H, W, C)")
    if not (np.isfinite(data_range) and data_range > 0):
        raise InputError(f"data_range is {data_range!r}, wanted a finite number above 0")
    squares = (image.astype(np.float64) - reference) ** 2
    if mask is not None:
        squares = squares[_checked_mask("mask", mask, reference.shape[:2])]
    mean = float(np.mean(squares))
    if not np.isfinite(mean):
        raise InputError(
            "image or reference has values that are not finite at pixels that count, wanted finite pixels"
        )
    return float("inf") if mean == 0 else float(10 * np.log10(data_range**2 / mean))


def to_linear(image: np.ndarray, gamma: float = 2.2) -> np.ndarray:
    """Turn display values into linear light, ``image ** gamma``.

    Args:
        image: Floating point, any shape, 0 or more.
        gamma: Exponent of the display.

    Returns:
        Linear light, shape and type of ``image``.

    Raises:
        InputError: If ``image`` is not floating point, has a value that is negative or not finite, or ``gamma`` is not
            above 0.
    """
    _checked_float("image", image)
    if not (np.isfinite(image).all() and (image >= 0).all()):
        raise InputError(f"image {image.shape} has values that are negative or not finite, wanted 0 or more")
    if not (np.isfinite(gamma) and gamma > 0):
        raise InputError(f"gamma is {gamma!r}, wanted a finite number above 0")
    return image ** image.dtype.type(gamma)


@dataclass(frozen=True)
class Selectivity:
    """How much more a generator changed defocused pixels than pixels in focus.

    Attributes:
        defocused: Mean change of the defocused pixels over the mean change that the reference blur makes there.
        in_focus: The same for the pixels in focus; 0 if they were left as they are.
        ratio: ``defocused / in_focus``. A uniform blur has about 1, whatever its radius; inf if only the defocused
            pixels changed; NaN if nothing changed.
    """

    defocused: float
    in_focus: float
    ratio: float


def _checked_pictures(sharp: np.ndarray, **others: np.ndarray) -> None:
    _checked_float("sharp", sharp)
    if sharp.ndim != 3 or sharp.shape[2] != 3 or sharp.size == 0:
        raise InputError(f"sharp has the shape {sharp.shape}, wanted (H, W, 3)")
    for name, picture in {"sharp": sharp, **others}.items():
        _checked_float(name, picture, sharp.shape)
        if not (np.isfinite(picture).all() and picture.min() >= 0 and picture.max() <= 1):
            raise InputError(f"{name} has values outside [0, 1], wanted display values in [0, 1]")


def selectivity(
    sharp: np.ndarray,
    bokeh: np.ndarray,
    blur_radius_px: np.ndarray,
    *,
    reference_radius_px: float = 4.0,
    defocused_above_px: float = 2.0,
    in_focus_below_px: float = 0.5,
    gamma: float = 2.2,
) -> Selectivity:
    """Measure whether a generator blurs what is out of focus rather than everything.

    In each of the two areas the mean absolute change from ``sharp`` to ``bokeh`` is divided by the mean absolute
    change that one uniform disk blur makes to the same pixels. That takes out how much texture an area has, which
    alone would decide the plain ratio.

    The default radii are those of pictures 128 px wide at K = 32; scale them with the width.

    Args:
        sharp: All-in-focus picture, float ``(H, W, 3)`` in [0, 1].
        bokeh: The generated picture, as ``sharp``.
        blur_radius_px: True radius of the blur disk at each pixel (Eq. 15), float ``(H, W)``, pixels.
        reference_radius_px: Radius of the uniform blur, pixels, above 0.5.
        defocused_above_px: Pixels with a greater true radius are defocused.
        in_focus_below_px: Pixels with a smaller true radius are in focus.
        gamma: The uniform blur is made in linear light ``value ** gamma``, as a lens does; 1 blurs display values.

    Returns:
        The two relative changes and their ratio.

    Raises:
        InputError: If shapes, types or values differ from the above, an area is empty, or an area has no texture that
            the reference blur changes.
    """
    _checked_pictures(sharp, bokeh=bokeh)
    _checked_float("blur_radius_px", blur_radius_px, sharp.shape[:2])
    if not (np.isfinite(blur_radius_px).all() and blur_radius_px.min() >= 0):
        raise InputError("blur_radius_px has values that are negative or not finite, wanted radii of 0 or more")
    if not 0 <= in_focus_below_px <= defocused_above_px:
        raise InputError(
            f"in_focus_below_px is {in_focus_below_px!r} and defocused_above_px {defocused_above_px!r}, wanted "
            "0 <= in_focus_below_px <= defocused_above_px"
        )
    if not reference_radius_px > 0.5:
        raise InputError(
            f"reference_radius_px is {reference_radius_px!r}, wanted above 0.5 (below, nothing is blurred)"
        )
    sharp64 = sharp.astype(np.float64)
    change = np.abs(bokeh - sharp64)
    reference_change = np.abs(disk_blur(sharp64, reference_radius_px, gamma=gamma) - sharp64)
    areas = {
        f"blur_radius_px > {defocused_above_px:g}": blur_radius_px > defocused_above_px,
        f"blur_radius_px < {in_focus_below_px:g}": blur_radius_px < in_focus_below_px,
    }
    relative = []
    for name, area in areas.items():
        _checked_mask(name, area, sharp.shape[:2])
        reference_mean = reference_change[area].mean()
        if reference_mean < 1e-6:  # rounding of the FFT, far below one 8-bit step
            raise InputError(f"sharp has no texture where {name}, wanted an area that the reference blur changes")
        relative.append(float(change[area].mean() / reference_mean))
    defocused, in_focus = relative
    if in_focus > 0:
        ratio = defocused / in_focus
    else:
        ratio = float("inf") if defocused > 0 else float("nan")
    return Selectivity(defocused, in_focus, ratio)


@dataclass(frozen=True)
class KResponse:
    """How a generator's change grows with the bokeh strength.

    Attributes:
        bokeh_strengths: K of the frames, ``(F,)``.
        mean_change: Mean absolute change from the sharp picture in the defocused area, ``(F,)``, display values.
        rising_share: Share of the ``F - 1`` steps from one K to the next in which the change rises.
        slope: Change per unit of K, the least-squares line through the origin (the estimator of Eq. 28).
    """

    bokeh_strengths: tuple[float, ...]
    mean_change: tuple[float, ...]
    rising_share: float
    slope: float


def k_response(
    sharp: np.ndarray, frames: np.ndarray, bokeh_strengths: Sequence[float], defocused: np.ndarray
) -> KResponse:
    """Measure whether more bokeh strength makes more blur.

    Args:
        sharp: All-in-focus picture, float ``(H, W, 3)`` in [0, 1].
        frames: Generated stack, float ``(F, H, W, 3)`` in [0, 1], F at least 2.
        bokeh_strengths: K of the frames, ``(F,)``, ascending, 0 or more.
        defocused: Area that counts, the same for every K, bool ``(H, W)``.

    Returns:
        The change at each K, the share of rising steps and the slope.

    Raises:
        InputError: If shapes, types or values differ from the above or the area is empty.
    """
    strengths = np.asarray(bokeh_strengths, dtype=np.float64)
    if (
        strengths.ndim != 1
        or len(strengths) < 2
        or not (np.diff(strengths) > 0).all()
        or not 0 <= strengths[0]
        or np.isinf(strengths[-1])
    ):
        raise InputError(
            f"bokeh_strengths is {bokeh_strengths!r}, wanted two or more ascending finite numbers, 0 or more"
        )
    _checked_float("frames", frames)
    if frames.ndim != 4 or len(frames) != len(strengths):
        raise InputError(f"frames has the shape {frames.shape}, wanted ({len(strengths)}, H, W, 3) as bokeh_strengths")
    _checked_pictures(sharp, **{f"frames[{index}]": frame for index, frame in enumerate(frames)})
    _checked_mask("defocused", defocused, sharp.shape[:2])
    inside = sharp[defocused].astype(np.float64)
    change = np.array([np.abs(frame[defocused] - inside).mean() for frame in frames])
    return KResponse(
        bokeh_strengths=tuple(strengths.tolist()),
        mean_change=tuple(change.tolist()),
        rising_share=float(np.mean(np.diff(change) > 0)),
        slope=float(np.sum(strengths * change) / np.sum(strengths**2)),
    )
