"""Thin-lens optics: bokeh strength, circle of confusion, depth of field, depth from a bokeh sweep.

Equation numbers are those of the paper (arXiv 2512.12425): Eq. 1 and 14-17 for the lens, Eq. 28 and 34 for the sweep.

The bokeh strength K is the slope of the blur **radius**: pixels of radius per dioptre of disparity offset. Section 3.1
says that ``pixel_ratio`` "converts the CoC diameter" and section 8.3 that the utility "returns the expected
circle-of-confusion diameter", but Eq. 1, 17 and 25 all carry the factor 1/2 that turns the diameter of Eq. 14 into a
radius, and section 9 says so in words above Eq. 24. K is stated at an image width of 512 px, so that the same lens has
the same K whatever size its picture is stored in; ``blur_radius_px`` takes the width of the image at hand.

Units are in the names, and a name means the same everywhere: ``focal_length_mm`` is the true focal length f (not a
35 mm equivalent), ``f_number`` N, ``focus_distance_m`` S1, beyond the focal length, ``subject_distance_m`` S2,
``sensor_width_mm`` the piece of sensor that the image's width covers, ``coc_mm`` the largest acceptable blur diameter
c on the sensor. Lens arguments are real scalars; a subject distance may be an array of any shape, and a result has its
shape then. Distances are measured along the optical axis. Focus and subject may be at infinity (``math.inf``). Every
function raises ``InputError`` for NaN, zero, negative and otherwise infinite values, naming the argument.
"""

from __future__ import annotations

import math
import reprlib
from numbers import Real

import numpy as np

from ..errors import InputError

REFERENCE_WIDTH_PX = 512
"""Image width, in pixels, at which every bokeh strength is stated."""

MAX_BOKEH_STRENGTH = 30.0
"""Upper end of the range of K that the networks are trained on (section 8.3)."""

DEFAULT_BOKEH_STRENGTHS = (10.0, 20.0, 30.0)

LEAST_BOKEH_STRENGTH = 1e-6
"""Smallest bokeh strength of a frame beside 0, the sharp image: less has no place in a file's name, and no blur."""

FULL_FRAME_DIAGONAL_MM = 43.27
"""Diagonal of a 36 mm x 24 mm frame as 35 mm equivalents are computed from it (exactly 43.2666 mm)."""

FULL_FRAME_WIDTH_MM = 36.0
"""Long side of the 35 mm frame."""

FULL_FRAME_COC_MM = 0.03
"""Circle of confusion that still looks sharp in a print of a 35 mm frame: the usual depth-of-field convention."""

_MM_PER_M = 1000.0


def check_number(value: float, name: str, unit: str = "", *, zero: bool = False, infinity: bool = False) -> float:
    """Return a positive real number as a float.

    Args:
        value: the number; NumPy scalars are accepted, booleans, text and arrays are not.
        name: how the argument is called where the caller got it, for the error message.
        unit: its unit, for the error message.
        zero: whether 0 is allowed.
        infinity: whether infinity is allowed.

    Returns:
        The same number as a ``float``.

    Raises:
        InputError: it is no real number, NaN, negative, or 0 or infinite where that is not allowed.
    """
    bound = ("at least 0" if zero else "greater than 0") + (f" {unit}" if unit else "")
    bound = f"{bound} (math.inf is allowed)" if infinity else f"finite and {bound}"
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, Real):
        raise InputError(f"{name} must be a number {bound}, got {reprlib.repr(value)}.")
    try:
        number = float(value)
    except OverflowError as error:  # a whole number can have more digits than any float
        raise InputError(f"{name} must be {bound}, got {reprlib.repr(value)}.") from error
    low_enough = number >= 0 if zero else number > 0
    if not low_enough or (math.isinf(number) and not infinity):
        raise InputError(f"{name} must be {bound}, got {number!r}.")
    return number


def check_whole_number(value: int | float, name: str, least: int, most: int) -> int:
    """Return a whole number in a range as an int; 3.0, which some programs send for 3, is one, and 3.5 is not.

    Args:
        value: the number; booleans, text and arrays are none.
        name: how the argument is called where the caller got it, for the error message.
        least: least value allowed.
        most: greatest value allowed.

    Returns:
        The same number as an ``int``.

    Raises:
        InputError: it is no whole number from ``least`` to ``most``.
    """
    is_number = isinstance(value, Real) and not isinstance(value, (bool, np.bool_))
    if not is_number or not least <= value <= most or value != int(value):
        raise InputError(f"{name} must be a whole number from {least} to {most}, got {reprlib.repr(value)}.")
    return int(value)


def _array(name: str, values: float | np.ndarray, unit: str, *, zero: bool = False, infinity: bool) -> np.ndarray:
    """Return ``values`` as a floating-point array (0-d for a scalar) after the same checks as ``check_number``."""
    if not isinstance(values, np.ndarray):
        return np.asarray(check_number(values, name, unit, zero=zero, infinity=infinity))
    if values.dtype.kind not in "fiu":
        raise InputError(f"{name} must be an array of real numbers in {unit}, got dtype {values.dtype}.")
    array = values if values.dtype.kind == "f" else values.astype(np.float64)
    good = array >= 0 if zero else array > 0
    if not infinity:
        good &= np.isfinite(array)
    if not good.all():
        bound = ("at least 0" if zero else "greater than 0") + ("" if infinity else " and finite")
        first = array[~good].flat[0]
        raise InputError(f"{name} must be {bound} in {unit} at every position, got {first} among {array.size} values.")
    return array


def _result(values: np.ndarray) -> float | np.ndarray:
    return values if values.ndim else float(values)


def _lens(focal_length_mm: float, f_number: float, focus_distance_m: float) -> tuple[float, float, float]:
    """Return focal length in metres, f-number and focus distance in metres, checked together."""
    focal_length_m = check_number(focal_length_mm, "focal_length_mm", "mm") / _MM_PER_M
    f_number = check_number(f_number, "f_number")
    focus_distance_m = check_number(focus_distance_m, "focus_distance_m", "m", infinity=True)
    if focus_distance_m <= focal_length_m:
        raise InputError(
            f"focus_distance_m must be greater than the focal length, {focal_length_m:g} m, got {focus_distance_m:g}."
        )
    return focal_length_m, f_number, focus_distance_m


def check_bokeh_strength(bokeh_strength: float, name: str = "bokeh_strength") -> float:
    """Return a bokeh strength that lies in the trained range, as a float.

    Args:
        bokeh_strength: K, in pixels of blur radius per dioptre at 512 px image width.
        name: how the argument is called where the caller got it, for the error message.

    Returns:
        The same number as a ``float``.

    Raises:
        InputError: it is not a finite number in [0, 30], or next to 0 without being 0. Nothing is clamped.
    """
    number = check_number(bokeh_strength, name, zero=True)
    if 0 < number < LEAST_BOKEH_STRENGTH:
        raise InputError(f"{name} must be 0 or at least {LEAST_BOKEH_STRENGTH:g}, got {number:g}.")
    if number > MAX_BOKEH_STRENGTH:
        raise InputError(f"{name} must be in [0, {MAX_BOKEH_STRENGTH:g}], the trained range, got {number:g}.")
    return number


def bokeh_strength(focal_length_mm: float, f_number: float, focus_distance_m: float, sensor_width_mm: float) -> float:
    """Bokeh strength K of a lens setting (Eq. 1, 17), in pixels of blur radius per dioptre at 512 px width.

    ``K = f^2 S1 / (2 N (S1 - f)) * 512 / sensor_width``, all lengths in metres. The result may exceed
    ``MAX_BOKEH_STRENGTH``: what a lens does is not bounded by what a network was trained on.
    """
    focal_length_m, f_number, focus_distance_m = _lens(focal_length_mm, f_number, focus_distance_m)
    sensor_width_m = check_number(sensor_width_mm, "sensor_width_mm", "mm") / _MM_PER_M
    # S1 / (S1 - f) written as 1 / (1 - f / S1), which also holds at infinity.
    slope_m2 = focal_length_m**2 / (2.0 * f_number * (1.0 - focal_length_m / focus_distance_m))
    return slope_m2 * REFERENCE_WIDTH_PX / sensor_width_m


def f_number_for_strength(
    bokeh_strength: float, focal_length_mm: float, focus_distance_m: float, sensor_width_mm: float
) -> float:
    """F-number, not rounded to a stop, at which a lens has the bokeh strength K > 0: Eq. 1 solved for N."""
    strength = check_number(bokeh_strength, "bokeh_strength")
    # K is proportional to 1 / N, so the K at f/1 is the product of the two.
    return _strength_at_f1(focal_length_mm, focus_distance_m, sensor_width_mm) / strength


def _strength_at_f1(focal_length_mm: float, focus_distance_m: float, sensor_width_mm: float) -> float:
    return bokeh_strength(focal_length_mm, 1.0, focus_distance_m, sensor_width_mm)


def full_frame_strength(bokeh_strength: float, crop_factor: float) -> float:
    """Bokeh strength divided by the crop factor: ``dof-cond-crop`` of the paper's data rows (section 8.3).

    It is what the same lens, aperture and focus give on a sensor ``crop_factor`` times as large.
    """
    return check_number(bokeh_strength, "bokeh_strength", zero=True) / check_number(crop_factor, "crop_factor")


def blur_radius_px(
    bokeh_strength: float,
    focus_distance_m: float,
    subject_distance_m: float | np.ndarray,
    image_width_px: float,
) -> float | np.ndarray:
    """Radius in pixels of the blur disk in the image, ``K * (width / 512) * |1/S1 - 1/S2|`` (Eq. 15, 26).

    ``bokeh_strength`` may be 0 and is not limited to the trained range.
    """
    strength = check_number(bokeh_strength, "bokeh_strength", zero=True)
    focus_distance_m = check_number(focus_distance_m, "focus_distance_m", "m", infinity=True)
    subject_m = _array("subject_distance_m", subject_distance_m, "m", infinity=True)
    scale = check_number(image_width_px, "image_width_px", "px") / REFERENCE_WIDTH_PX
    return _result(np.asarray(strength * scale * np.abs(1.0 / focus_distance_m - 1.0 / subject_m)))


def circle_of_confusion_mm(
    focal_length_mm: float,
    f_number: float,
    focus_distance_m: float,
    subject_distance_m: float | np.ndarray,
) -> float | np.ndarray:
    """Diameter in mm of the blur disk on the sensor, ``f^2 |S2 - S1| / (N (S1 - f) S2)`` (Eq. 14, 16, 20)."""
    focal_length_m, f_number, focus_distance_m = _lens(focal_length_mm, f_number, focus_distance_m)
    subject_m = _array("subject_distance_m", subject_distance_m, "m", infinity=True)
    # |S2 - S1| / ((S1 - f) S2) = |1/S1 - 1/S2| / (1 - f / S1), Eq. 22, which also holds at infinity.
    slope_m2 = focal_length_m**2 / (f_number * (1.0 - focal_length_m / focus_distance_m))
    return _result(np.asarray(slope_m2 * _MM_PER_M * np.abs(1.0 / focus_distance_m - 1.0 / subject_m)))


def crop_factor(focal_length_mm: float, focal_length_35mm: float) -> float:
    """35 mm equivalent over true focal length (section 8.3): 1 for a full frame, 1.5 for APS-C, 6-7 for phones."""
    equivalent_mm = check_number(focal_length_35mm, "focal_length_35mm", "mm")
    return equivalent_mm / check_number(focal_length_mm, "focal_length_mm", "mm")


def sensor_width_mm(
    focal_length_mm: float, focal_length_35mm: float, image_width_px: float, image_height_px: float
) -> float:
    """Sensor width in mm from the two focal lengths by the diagonal rule (``calc_sensor_width`` of section 8.3).

    35 mm equivalents compare diagonals, so ``width = (f / f35) * 43.27 mm / sqrt(1 + (H / W)^2)``. The width returned
    runs along the image's width: for an upright picture it is the sensor's short side. Only the ratio of the sides of
    the image counts, which is not cropped.
    """
    height_px = check_number(image_height_px, "image_height_px", "px")
    aspect = height_px / check_number(image_width_px, "image_width_px", "px")
    diagonal_mm = FULL_FRAME_DIAGONAL_MM / crop_factor(focal_length_mm, focal_length_35mm)
    return diagonal_mm / math.sqrt(1.0 + aspect**2)


def hyperfocal_distance_m(focal_length_mm: float, f_number: float, coc_mm: float) -> float:
    """Closest focus distance in metres that leaves infinity acceptably sharp, ``f^2 / (N c) + f``.

    This is Eq. 14 with S2 at infinity and d = c, solved for S1.
    """
    focal_length_mm = check_number(focal_length_mm, "focal_length_mm", "mm")
    blur_mm = check_number(f_number, "f_number") * check_number(coc_mm, "coc_mm", "mm")
    return (focal_length_mm**2 / blur_mm + focal_length_mm) / _MM_PER_M


def depth_of_field_m(
    focal_length_mm: float, f_number: float, focus_distance_m: float, coc_mm: float
) -> tuple[float, float]:
    """Distances between which the blur stays below ``coc_mm``: Eq. 14 with d = c, solved for S2 on either side.

    Returns:
        ``(near, far)`` in metres, ``near < S1 <= far``; ``far`` is ``math.inf`` from the hyperfocal distance on.
    """
    focal_length_m, f_number, focus_distance_m = _lens(focal_length_mm, f_number, focus_distance_m)
    coc_m = check_number(coc_mm, "coc_mm", "mm") / _MM_PER_M
    # Disparity offset at which the diameter reaches c, in dioptres.
    offset_dpt = coc_m * f_number * (1.0 - focal_length_m / focus_distance_m) / focal_length_m**2
    near_m = 1.0 / (1.0 / focus_distance_m + offset_dpt)
    if focus_distance_m >= hyperfocal_distance_m(focal_length_mm, f_number, coc_mm):
        return near_m, math.inf
    return near_m, 1.0 / (1.0 / focus_distance_m - offset_dpt)


def foreground_clear(
    focal_length_mm: float,
    f_number: float,
    focus_distance_m: float,
    sensor_width_mm: float,
    foreground_distance_m: float,
    relaxation: float = 2.0,
) -> bool:
    """Whether a plane in the near foreground stays inside the in-focus region (``foreground_clear`` of section 8.3).

    The paper asks for "a relaxed depth-of-field test" with "a sensor-size-dependent circle-of-confusion estimate" and
    gives no numbers. The rule here: the acceptable blur is 0.03 mm on a 36 mm wide sensor, scales with the sensor's
    width, and is multiplied by ``relaxation``, which is 1 for the usual depth of field; the plane is clear when it
    lies between the near and far bounds for that blur, bounds included. At the default of 2 this allows a blur disk
    0.17 % of the image width across, 0.85 px at 512 px.
    """
    relative_width = check_number(sensor_width_mm, "sensor_width_mm", "mm") / FULL_FRAME_WIDTH_MM
    coc_mm = FULL_FRAME_COC_MM * relative_width * check_number(relaxation, "relaxation")
    foreground_distance_m = check_number(foreground_distance_m, "foreground_distance_m", "m", infinity=True)
    near_m, far_m = depth_of_field_m(focal_length_mm, f_number, focus_distance_m, coc_mm)
    return near_m <= foreground_distance_m <= far_m


def disparity_offset_from_sweep(
    bokeh_strengths: np.ndarray, blur_radii_px: np.ndarray, image_width_px: float
) -> np.ndarray:
    """Least-squares slope through the origin of blur radius against K: the disparity offset (Eq. 28).

    Args:
        bokeh_strengths: (F,) K of each frame at 512 px width, at least one of them above 0.
        blur_radii_px: (F, ...) blur radius measured in each frame, in pixels of an image ``image_width_px`` wide.
        image_width_px: width of the measured frames.

    Returns:
        (...) absolute disparity offset ``|1/S1 - 1/S2|`` in dioptres.

    Raises:
        InputError: the frame counts differ, every K is 0, or a value is negative or not finite.
    """
    if not isinstance(bokeh_strengths, np.ndarray) or bokeh_strengths.ndim != 1:
        raise InputError(f"bokeh_strengths must be an array of shape (F,), got shape {np.shape(bokeh_strengths)}.")
    if not isinstance(blur_radii_px, np.ndarray) or blur_radii_px.shape[:1] != bokeh_strengths.shape:
        raise InputError(
            f"blur_radii_px must be an array of shape ({bokeh_strengths.size}, ...), got {np.shape(blur_radii_px)}."
        )
    strengths = _array("bokeh_strengths", bokeh_strengths, "px per dioptre", zero=True, infinity=False)
    radii_px = _array("blur_radii_px", blur_radii_px, "px", zero=True, infinity=False)
    if not strengths.any():
        raise InputError("bokeh_strengths must hold at least one value above 0: a sharp stack carries no blur to fit.")
    slopes_px = strengths * (check_number(image_width_px, "image_width_px", "px") / REFERENCE_WIDTH_PX)
    return np.tensordot(slopes_px, radii_px, axes=1) / np.sum(slopes_px**2)


def depth_from_disparity_offset_m(
    disparity_offset_dpt: float | np.ndarray, focus_distance_m: float, behind_focus: bool | np.ndarray
) -> float | np.ndarray:
    """Depth in metres from a disparity offset, ``S2 = 1 / (1/S1 -/+ offset)`` (Eq. 34).

    Blur alone does not tell the two sides of the focal plane apart (Eq. 33), so the caller says which side it is.

    Args:
        disparity_offset_dpt: absolute offset in dioptres, 0 or more, a scalar or an array of any shape.
        focus_distance_m: focus distance S1 in metres; ``math.inf`` is allowed.
        behind_focus: True for pixels farther than the focal plane, a bool or a boolean array that broadcasts.

    Returns:
        Depth; ``inf`` where an offset behind the focus reaches or passes 1/S1, which noise makes it do.
    """
    offset_dpt = _array("disparity_offset_dpt", disparity_offset_dpt, "dioptres", zero=True, infinity=False)
    focus_dpt = 1.0 / check_number(focus_distance_m, "focus_distance_m", "m", infinity=True)
    side = np.asarray(behind_focus)
    if side.dtype != bool:
        raise InputError(f"behind_focus must be a bool or a boolean array, got dtype {side.dtype}.")
    disparity_dpt = np.where(side, focus_dpt - offset_dpt, focus_dpt + offset_dpt)
    depth_m = np.full_like(disparity_dpt, np.inf)
    np.divide(1.0, disparity_dpt, out=depth_m, where=disparity_dpt > 0)
    return _result(depth_m)
