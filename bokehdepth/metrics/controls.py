"""What a bokeh generator did to a photo: selectivity and the K response, this project's controls of Stage-1.

Pictures are display values, floating point in [0, 1].
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bokehdepth.errors import InputError
from bokehdepth.metrics.checks import checked_float, checked_mask, checked_pictures
from bokehdepth.rendering.disk import disk_blur


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
    checked_pictures(sharp, bokeh=bokeh)
    checked_float("blur_radius_px", blur_radius_px, sharp.shape[:2])
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
        checked_mask(name, area, sharp.shape[:2])
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
    checked_float("frames", frames)
    if frames.ndim != 4 or len(frames) != len(strengths):
        raise InputError(f"frames has the shape {frames.shape}, wanted ({len(strengths)}, H, W, 3) as bokeh_strengths")
    checked_pictures(sharp, **{f"frames[{index}]": frame for index, frame in enumerate(frames)})
    checked_mask("defocused", defocused, sharp.shape[:2])
    inside = sharp[defocused].astype(np.float64)
    change = np.array([np.abs(frame[defocused] - inside).mean() for frame in frames])
    return KResponse(
        bokeh_strengths=tuple(strengths.tolist()),
        mean_change=tuple(change.tolist()),
        rising_share=float(np.mean(np.diff(change) > 0)),
        slope=float(np.sum(strengths * change) / np.sum(strengths**2)),
    )
