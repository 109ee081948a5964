"""From f-numbers to bokeh strengths of one photo, and the table of what each aperture does. No torch import.

A lens asks for whatever K its aperture gives; the networks were trained on [0, 30]. An aperture beyond that is refused
with the nearest f-number that fits, never clamped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import InputError
from . import Camera
from . import lens as optics

STANDARD_F_NUMBERS = (1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0, 11.0, 16.0, 22.0, 32.0)
"""Full stops as they are engraved on lenses."""

THIRD_STOPS = (
    1.4, 1.6, 1.8, 2.0, 2.2, 2.5, 2.8, 3.2, 3.5, 4.0, 4.5, 5.0, 5.6, 6.3, 7.1, 8.0, 9.0, 10.0, 11.0, 13.0, 14.0, 16.0,
    18.0, 20.0, 22.0,
)  # fmt: skip
"""Thirds of a stop from f/1.4 to f/22 as cameras show them: even on a logarithmic scale."""

_SIGNIFICANT_DIGITS = 4  # of K from an f-number: apertures are not known better, and K becomes a file name


@dataclass(frozen=True)
class ApertureRow:
    """What one aperture does to a photo at its focus.

    Attributes:
        f_number: f-number N.
        bokeh_strength: K, px of blur radius per dioptre at 512 px width (Eq. 1).
        fits: whether K is in [0, 30], the trained range.
        background_coc_mm: diameter on the sensor of the blur disk of a point at infinity, in mm (Eq. 14).
        background_coc_px: the same diameter in pixels of the photo.
        background_radius_px: its radius in pixels of the photo (Eq. 15).
        near_m: near limit of the depth of field in metres.
        far_m: far limit in metres; ``math.inf`` from the hyperfocal distance on.
    """

    f_number: float
    bokeh_strength: float
    fits: bool
    background_coc_mm: float
    background_coc_px: float
    background_radius_px: float
    near_m: float
    far_m: float


def smallest_f_number(camera: Camera) -> float:
    """F-number of K = 30, the end of the trained range, rounded up to three digits, so that its own K fits as well."""
    exact = camera.f_number_for(optics.MAX_BOKEH_STRENGTH)
    step = 10.0 ** (math.floor(math.log10(exact)) - 2)
    return float(f"{math.ceil(exact / step) * step:.12g}")


def strengths_from_f_numbers(
    camera: Camera, f_numbers: Sequence[float], name: str = "f_numbers"
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Bokeh strengths of a series of f-numbers at the photo's focus (Eq. 1, 17).

    K is rounded to four significant digits, a change of at most 0.05 % (0.01 stop is 0.7 %).

    Args:
        camera: lens settings of the photo; its own f-number does not matter.
        f_numbers: f-numbers in any order, each once.
        name: how the argument is called where the caller got it, for the error message.

    Returns:
        ``(bokeh_strengths, f_numbers)``, both (F,), K ascending, each f-number at the place of its K.

    Raises:
        InputError: there is none, one is not a positive finite number, two have the same K, or a K is above 30; the
            sentence then names the nearest f-number that fits.
    """
    if len(f_numbers) == 0:
        raise InputError(f"{name} is empty, wanted one f-number or more.")
    pairs: dict[float, float] = {}
    for f_number in sorted((optics.check_number(value, name) for value in f_numbers), reverse=True):
        exact = camera.bokeh_strength(f_number)
        if exact > optics.MAX_BOKEH_STRENGTH:
            raise InputError(
                f"{name} has f/{f_number:g}, which gives K = {exact:.1f} at this focal length and focus, above the "
                f"trained range [0, {optics.MAX_BOKEH_STRENGTH:g}]; the nearest f-number that fits is "
                f"f/{smallest_f_number(camera):g}."
            )
        strength = float(f"{exact:.{_SIGNIFICANT_DIGITS}g}")
        if strength in pairs:
            raise InputError(f"{name} has f/{f_number:g} and f/{pairs[strength]:g}, wanted each aperture once.")
        pairs[strength] = f_number
    return tuple(pairs), tuple(pairs.values())


def lens_assumptions(camera: Camera) -> list[str]:
    """Sentences on what is assumed of a lens whose K is computed for other f-numbers than the photo's own."""
    return [sentence for sentence in camera.assumptions() if not sentence.startswith("f_number ")]


def acceptable_coc_mm(camera: Camera) -> float:
    """Blur diameter in mm that still looks sharp: 0.03 mm on the 35 mm frame, scaled by the sensor's diagonal."""
    return optics.FULL_FRAME_COC_MM / optics.crop_factor(camera.focal_length_mm.value, camera.focal_length_35mm.value)


def aperture_table(camera: Camera, f_numbers: Sequence[float] = STANDARD_F_NUMBERS) -> list[ApertureRow]:
    """K, blur of the background and depth of field for each f-number (Eq. 1, 14, 15).

    Args:
        camera: lens settings of the photo.
        f_numbers: f-numbers, in the order of the rows.

    Returns:
        One row for each f-number.

    Raises:
        InputError: an f-number is not a positive finite number.
    """
    focal_mm, focus_m = camera.focal_length_mm.value, camera.focus_distance_m.value
    coc_mm = acceptable_coc_mm(camera)
    rows = []
    for f_number in f_numbers:
        strength = camera.bokeh_strength(f_number)
        blur_mm = optics.circle_of_confusion_mm(focal_mm, f_number, focus_m, math.inf)
        radius_px = optics.blur_radius_px(strength, focus_m, math.inf, camera.image_width_px)
        near_m, far_m = optics.depth_of_field_m(focal_mm, f_number, focus_m, coc_mm)
        rows.append(
            ApertureRow(
                f_number=float(f_number),
                bokeh_strength=strength,
                fits=strength <= optics.MAX_BOKEH_STRENGTH,
                background_coc_mm=blur_mm,
                background_coc_px=2 * radius_px,
                background_radius_px=radius_px,
                near_m=near_m,
                far_m=far_m,
            )
        )
    return rows
