"""From a photo and its EXIF to lens settings and intrinsics, saying where every value came from.

A lens setting needs five numbers (f-number, focal length, field of view, sensor width, focus distance) and most photos
record only some of them. ``read_camera`` fills the rest from what is there, then from documented assumptions, and each
``Value`` says which: nothing is guessed in silence. EXIF is written by many hands and often wrong, so a tag that
cannot be true (0/0, an f-number of 0, a sensor 1 mm wide, text where a number belongs) counts as absent and is named
in ``Camera.notes``; only what the caller passes can raise.

The sources of the sensor width follow section 8.3 of the paper: focal-plane resolution, then the 35 mm equivalent.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, Protocol

import numpy as np
import PIL.Image

from . import optics
from .errors import InputError

Source = Literal["given", "read", "derived", "assumed"]

ASSUMED_F_NUMBER = 2.8
"""Middle of the apertures photos are taken with: phones f/1.5-2.4, compacts f/2-4, kit lenses f/3.5-5.6."""

ASSUMED_FOCAL_LENGTH_35MM = 28.0
"""Field of view of a photo that does not tell: main cameras of phones are 24-28 mm, compacts start at 24-35 mm."""

ASSUMED_FOCUS_DISTANCE_M = 2.0
"""Distance of a person or a table in a typical photo; EXIF seldom records it (section 8.1)."""

TAG_ORIENTATION = 0x0112
_TAG_EXIF_IFD = 0x8769
_TAG_F_NUMBER = 0x829D
_TAG_APERTURE_VALUE = 0x9202
_TAG_SUBJECT_DISTANCE = 0x9206
_TAG_FOCAL_LENGTH = 0x920A
_TAG_PIXEL_X_DIMENSION = 0xA002
_TAG_PIXEL_Y_DIMENSION = 0xA003
_TAG_FOCAL_PLANE_X_RESOLUTION = 0xA20E
_TAG_FOCAL_PLANE_Y_RESOLUTION = 0xA20F
_TAG_FOCAL_PLANE_RESOLUTION_UNIT = 0xA210
_TAG_DIGITAL_ZOOM_RATIO = 0xA404
_TAG_FOCAL_LENGTH_35MM = 0xA405

ROTATED_ORIENTATIONS = (5, 6, 7, 8)
"""Values of the orientation tag that exchange width and height."""

_INCH = 2
_UNIT_MM = {_INCH: 25.4, 3: 10.0, 4: 1.0, 5: 0.001}
_INFINITE_DISTANCE = 0xFFFFFFFF  # as the numerator of SubjectDistance

# What a tag may say before it counts as absent. The sensors run from the smallest phone format to medium format.
_F_NUMBER_RANGE = (0.5, 128.0)
_FOCAL_LENGTH_MM_RANGE = (0.5, 3000.0)
_FOCAL_LENGTH_35MM_RANGE = (4.0, 6000.0)
_SENSOR_LONG_SIDE_MM_RANGE = (2.4, 65.0)
_APERTURE_VALUE_RANGE = (1e-6, 2 * math.log2(_F_NUMBER_RANGE[1]))  # 0 would be f/1.0, but is written for "unknown"
_RESOLUTION_RANGE = (1e-3, 1e9)
_SUBJECT_DISTANCE_M_RANGE = (1e-3, 1e6)

# Two readings of the sensor width that differ by more than this cannot both be right.
_SENSOR_TOLERANCE = 0.2
# Aspect ratios of a stored picture and of its recorded pixel counts that differ by more than this mean a crop.
_ASPECT_TOLERANCE = 0.01


class PhotoLike(Protocol):
    """An upright picture beside the EXIF of its file, as ``imaging.Photo``.

    The orientation that the EXIF still names has been applied to the pixels already; ``exif`` is None where damaged.
    """

    @property
    def image(self) -> PIL.Image.Image:
        """The upright picture."""

    @property
    def exif(self) -> PIL.Image.Exif | None:
        """EXIF entries as they stood in the file."""


@dataclass(frozen=True)
class Value:
    """A number and where it came from.

    Attributes:
        value: the number, in the unit that the name of the field it stands in ends with.
        source: ``"given"`` by the caller, ``"read"`` from EXIF, ``"derived"`` from such numbers, or ``"assumed"`` (as
            is a number that follows from an assumed one).
        note: half a sentence on how it came about, without the final full stop.
    """

    value: float
    source: Source
    note: str

    def __float__(self) -> float:
        return self.value


@dataclass(frozen=True)
class Camera:
    """Lens settings and geometry of one photo, upright.

    The values agree with each other: ``focal_length_px = focal_length_mm / sensor_width_mm * image_width_px``, and the
    35 mm equivalent is that of the picture's own diagonal.

    Attributes:
        f_number: f-number N.
        focal_length_mm: true focal length in mm.
        focal_length_35mm: 35 mm equivalent focal length, by diagonals, of this picture (of a crop: of the crop).
        sensor_width_mm: width in mm of the piece of sensor that the image's width covers; of an upright picture thus
            the short side.
        focus_distance_m: focus distance S1 in metres, ``math.inf`` where the camera reports infinity.
        focal_length_px: focal length in pixels of this image; pixels are taken to be square.
        image_width_px: width after the EXIF orientation has been applied.
        image_height_px: height after the EXIF orientation has been applied.
        notes: sentences on EXIF entries that were not used, and why.
    """

    f_number: Value
    focal_length_mm: Value
    focal_length_35mm: Value
    sensor_width_mm: Value
    focus_distance_m: Value
    focal_length_px: Value
    image_width_px: int
    image_height_px: int
    notes: tuple[str, ...] = ()

    @property
    def intrinsics(self) -> np.ndarray:
        """Pinhole matrix (3, 3), float64, in pixels, with the principal point at the image centre (W/2, H/2).

        The origin is the outer corner of the top left pixel, so the centre of pixel (column i, row j) is at (i + 0.5,
        j + 0.5). Where pixel centres are counted as whole numbers, subtract 0.5 from the last column's first two rows.
        """
        focal_px = self.focal_length_px.value
        return np.array(
            [[focal_px, 0.0, self.image_width_px / 2], [0.0, focal_px, self.image_height_px / 2], [0.0, 0.0, 1.0]]
        )

    @property
    def known_intrinsics(self) -> np.ndarray | None:
        """`intrinsics`, or None where the focal length is assumed and a depth model may predict a better one."""
        return None if self.focal_length_px.source == "assumed" else self.intrinsics

    @property
    def _lens_values(self) -> dict[str, Value]:
        names = ("f_number", "focal_length_mm", "focal_length_35mm", "sensor_width_mm", "focus_distance_m")
        return {name: getattr(self, name) for name in (*names, "focal_length_px")}

    def assumptions(self) -> list[str]:
        """Sentences on what is assumed, one for each reason; empty when everything was given, read or derived."""
        reasons: dict[str, list[str]] = {}
        for name, value in self._lens_values.items():
            if value.source == "assumed":
                reasons.setdefault(value.note, []).append(f"{name} = {value.value:.4g}")
        return [
            f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} assumed: {note}."
            for note, names in reasons.items()
        ]

    def bokeh_strength(self, f_number: float | None = None) -> float:
        """Bokeh strength K of this camera and focus at 512 px width (Eq. 1).

        Args:
            f_number: another f-number than the photo's own.

        Returns:
            K; it may exceed the trained range.

        Raises:
            InputError: ``f_number`` is not a positive finite number.
        """
        f_number = self.f_number.value if f_number is None else f_number
        return optics.bokeh_strength(
            self.focal_length_mm.value, f_number, self.focus_distance_m.value, self.sensor_width_mm.value
        )

    def f_number_for(self, bokeh_strength: float) -> float:
        """F-number at which this camera and focus have the bokeh strength K, at 512 px width (Eq. 1).

        Args:
            bokeh_strength: K > 0.

        Returns:
            The f-number, not rounded to a stop.

        Raises:
            InputError: ``bokeh_strength`` is not a positive finite number.
        """
        return optics.f_number_for_strength(
            bokeh_strength, self.focal_length_mm.value, self.focus_distance_m.value, self.sensor_width_mm.value
        )

    def record(self) -> dict[str, dict[str, Any]]:
        """Each value with where it came from, as ``io.run_record`` takes them: ``{name: {"value", "source"}}``."""
        entries = {name: entry for name, entry in self.to_dict().items() if isinstance(entry, dict)}
        return {name: {"value": entry["value"], "source": entry["source"]} for name, entry in entries.items()}

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON types; a focus at infinity becomes the text ``"infinity"``, which JSON lacks."""
        values = {
            name: {
                "value": value.value if math.isfinite(value.value) else "infinity",
                "source": value.source,
                "note": value.note,
            }
            for name, value in self._lens_values.items()
        }
        return {
            **values,
            "image_width_px": self.image_width_px,
            "image_height_px": self.image_height_px,
            "intrinsics": self.intrinsics.tolist(),
            "notes": list(self.notes),
        }


def read_exif(image: PIL.Image.Image) -> PIL.Image.Exif | None:
    """EXIF of a picture, or None where it is damaged beyond reading; without EXIF an empty one.

    Args:
        image: any PIL image.

    Returns:
        The EXIF entries, of which ``get_ifd(0x8769)`` holds the photographic ones.
    """
    try:
        exif = image.getexif()
        exif.get_ifd(_TAG_EXIF_IFD)
    except (SyntaxError, struct.error, ValueError, TypeError, KeyError, OSError):
        return None  # the errors that PIL raises on damaged TIFF structures
    return exif


def read_camera(
    photo: PIL.Image.Image | PhotoLike,
    *,
    f_number: float | None = None,
    focal_length_mm: float | None = None,
    focal_length_35mm: float | None = None,
    focal_length_px: float | None = None,
    sensor_width_mm: float | None = None,
    focus_distance_m: float | None = None,
) -> Camera:
    """Lens settings of a photo from what the caller knows, its EXIF, and documented assumptions, in this order.

    Focal length, field of view and sensor width depend on each other (any two give the third), so at most two of the
    three may be given, and the field of view in one form only. The first two known in this order decide: those given,
    EXIF's focal length, EXIF's sensor width (focal-plane resolution, else from the 35 mm equivalent), EXIF's 35 mm
    equivalent, a 28 mm equivalent (or the true focal length where that is longer, so that no sensor larger than a full
    frame is assumed), a sensor with the diagonal of a full frame. An unknown f-number is taken as f/2.8, an unknown
    focus distance as 2 m (ten focal lengths where that is more).

    Args:
        photo: a PIL image as opened (its EXIF orientation is considered, not applied to the pixels), or an
            ``imaging.Photo``.
        f_number: f-number of the exposure.
        focal_length_mm: true focal length in mm.
        focal_length_35mm: 35 mm equivalent in mm of the picture as it is.
        focal_length_px: focal length in pixels of the upright image.
        sensor_width_mm: sensor width in mm along the width of the upright image.
        focus_distance_m: focus distance in metres; ``math.inf`` is allowed.

    Returns:
        The camera; it always has all values.

    Raises:
        InputError: a given value is not a positive number, more is given than the geometry has freedom for, or the
            focus lies within the focal length.
    """
    given = _check_given(
        f_number, focal_length_mm, focal_length_35mm, focal_length_px, sensor_width_mm, focus_distance_m
    )
    in_memory = isinstance(photo, PIL.Image.Image)
    exif = read_exif(photo) if in_memory else photo.exif
    size_px = photo.size if in_memory else photo.image.size
    # PIL turns TIFF pictures upright by itself, and tells their upright size before it does.
    as_stored = in_memory and photo.format != "TIFF"
    rotated = exif is not None and exif.get(TAG_ORIENTATION) in ROTATED_ORIENTATIONS
    turned_px = size_px[::-1] if rotated else size_px
    stored_px, (width_px, height_px) = (size_px, turned_px) if as_stored else (turned_px, size_px)
    tags = _ExifReader(exif, stored_px, rotated)

    geometry = _solve_geometry(given, tags, width_px, height_px)
    focal_mm = geometry["focal_length_mm"].value
    focus = _focus_distance(given, tags, focal_mm)
    if focus.value * 1000 <= focal_mm:
        raise InputError(
            f"focus_distance_m must be greater than the focal length, {focal_mm / 1000:g} m, got {focus.value:g}."
        )
    return Camera(
        f_number=_f_number(given, tags),
        focus_distance_m=focus,
        image_width_px=width_px,
        image_height_px=height_px,
        notes=tuple(tags.notes),
        **geometry,
    )


def _check_given(
    f_number: float | None,
    focal_length_mm: float | None,
    focal_length_35mm: float | None,
    focal_length_px: float | None,
    sensor_width_mm: float | None,
    focus_distance_m: float | None,
) -> dict[str, Value]:
    """Return the values that the caller gave, checked; a missing key means not given."""
    named = {
        "f_number": f_number,
        "focal_length_mm": focal_length_mm,
        "focal_length_35mm": focal_length_35mm,
        "focal_length_px": focal_length_px,
        "sensor_width_mm": sensor_width_mm,
        "focus_distance_m": focus_distance_m,
    }
    given = {
        name: Value(
            optics.check_number(value, name, infinity=name == "focus_distance_m"), "given", "given by the caller"
        )
        for name, value in named.items()
        if value is not None
    }
    if "focal_length_35mm" in given and "focal_length_px" in given:
        raise InputError(
            f"focal_length_px = {focal_length_px:g} and focal_length_35mm = {focal_length_35mm:g} both state the "
            "field of view; give one of them."
        )
    view = given.keys() & {"focal_length_35mm", "focal_length_px"}
    if view and {"focal_length_mm", "sensor_width_mm"} <= given.keys():
        raise InputError(
            f"{view.pop()}, focal_length_mm and sensor_width_mm depend on each other; give at most two of the three."
        )
    return given


class _ExifReader:
    """Plausible values of the tags that matter; ``notes`` gathers a sentence on each one that was set aside."""

    def __init__(self, exif: PIL.Image.Exif | None, stored_px: tuple[int, int], rotated: bool) -> None:
        self.notes: list[str] = []
        # Some writers put the photographic tags beside the image tags instead of into their own directory.
        self._directories = () if exif is None else (exif.get_ifd(_TAG_EXIF_IFD), exif)
        if exif is None:
            self.notes.append("the EXIF block is damaged and was not used")
        # The tags describe the picture as stored, before its orientation is applied.
        self._stored_px = stored_px
        self._rotated = rotated
        self._recorded_px, self._turned = self._recorded_counts()
        self._frame_px, self._cropped = self._frame()

    def _raw(self, tag: int) -> Any:
        raw = next((directory[tag] for directory in self._directories if tag in directory), None)
        return raw[0] if isinstance(raw, tuple) and len(raw) == 1 else raw

    def _number(self, tag: int) -> float | None:
        raw = self._raw(tag)
        if isinstance(raw, bool) or not isinstance(raw, Real):
            return None
        return float(raw) if math.isfinite(raw) else None

    def _plausible(self, name: str, tag: int, bounds: tuple[float, float]) -> float | None:
        number = self._number(tag)
        if number is None:
            if self._raw(tag) is not None:
                self.notes.append(f"EXIF {name} holds no number and was not used")
            return None
        if bounds[0] <= number <= bounds[1]:
            return number
        if number != 0:  # 0 is how many cameras say "unknown"
            self.notes.append(f"EXIF {name} is {number:g}, which cannot be, and was not used")
        return None

    def _recorded_counts(self) -> tuple[tuple[float, float] | None, bool]:
        """Pixel counts that the camera recorded, along the stored picture's axes, and whether they had to be swapped.

        Software that turns the pixels upright often leaves the counts (and focal-plane resolutions) as they were.
        """
        recorded_x, recorded_y = self._number(_TAG_PIXEL_X_DIMENSION), self._number(_TAG_PIXEL_Y_DIMENSION)
        if recorded_x is None or recorded_y is None or min(recorded_x, recorded_y) <= 0:
            return None, False
        stored_x, stored_y = self._stored_px
        turned = (stored_x - stored_y) * (recorded_x - recorded_y) < 0
        return ((recorded_y, recorded_x) if turned else (recorded_x, recorded_y)), turned

    def _frame(self) -> tuple[tuple[float, float] | None, bool]:
        """Size of the recorded frame in pixels of the stored picture, and whether the picture is cropped from it.

        A picture made smaller has fewer pixels than recorded, but shows the whole frame. A picture cut to another
        shape has lost a part of it; one side is taken to be whole, which is the least crop that fits.
        """
        if self._recorded_px is None:
            return None, False
        scales = [stored / recorded for stored, recorded in zip(self._stored_px, self._recorded_px, strict=True)]
        # Rounding to whole pixels changes the aspect of a small picture by half a pixel in its short side.
        tolerance = max(_ASPECT_TOLERANCE, 0.75 / min(self._stored_px))
        if abs(scales[0] / scales[1] - 1) <= tolerance:
            return self._stored_px, False
        scale = max(scales)
        if scale > 1:  # larger than the frame it would be cut from: a panorama, or counts of another picture
            return None, False
        return (self._recorded_px[0] * scale, self._recorded_px[1] * scale), True

    def f_number(self) -> Value | None:
        number = self._plausible("FNumber", _TAG_F_NUMBER, _F_NUMBER_RANGE)
        if number is not None:
            return Value(number, "read", "EXIF FNumber")
        apex = self._plausible("ApertureValue", _TAG_APERTURE_VALUE, _APERTURE_VALUE_RANGE)
        return None if apex is None else Value(2 ** (apex / 2), "derived", "EXIF ApertureValue, N = 2^(Av/2)")

    def focal_length_mm(self) -> Value | None:
        number = self._plausible("FocalLength", _TAG_FOCAL_LENGTH, _FOCAL_LENGTH_MM_RANGE)
        return None if number is None else Value(number, "read", "EXIF FocalLength")

    def focal_length_35mm(self) -> Value | None:
        """35 mm equivalent of this picture: as read, or longer where the picture is cropped."""
        number = self._plausible("FocalLengthIn35mmFilm", _TAG_FOCAL_LENGTH_35MM, _FOCAL_LENGTH_35MM_RANGE)
        if number is None:
            return None
        if not self._cropped:
            return Value(number, "read", "EXIF FocalLengthIn35mmFilm")
        number *= math.hypot(*self._frame_px) / math.hypot(*self._stored_px)
        return Value(number, "derived", "EXIF FocalLengthIn35mmFilm and the crop from the recorded pixel counts")

    def sensor_width_mm(self, focal_mm: Value | None, focal_35mm: Value | None, aspect: float) -> Value | None:
        """Sensor width along the upright image's width; ``aspect`` is its height over its width."""
        plane_mm = self._focal_plane_width_mm()
        from_35mm = None
        if focal_mm is not None and focal_35mm is not None:
            width_mm = optics.sensor_width_mm(focal_mm.value, focal_35mm.value, 1.0, aspect)
            from_35mm = Value(width_mm, "derived", "EXIF focal length and 35 mm equivalent, by diagonals")
        if plane_mm is None:
            return from_35mm
        if from_35mm is not None and abs(plane_mm / from_35mm.value - 1) > _SENSOR_TOLERANCE:
            # Resizing software may rewrite the pixel counts; it has no reason to touch the 35 mm equivalent.
            self.notes.append(
                f"EXIF FocalPlaneXResolution was not used: it gives a sensor {plane_mm:.3g} mm wide where the 35 mm "
                f"equivalent gives {from_35mm.value:.3g} mm"
            )
            return from_35mm
        return Value(plane_mm, "derived", "EXIF focal-plane resolution and recorded pixel counts")

    def _focal_plane_width_mm(self) -> float | None:
        per_unit_x = self._plausible("FocalPlaneXResolution", _TAG_FOCAL_PLANE_X_RESOLUTION, _RESOLUTION_RANGE)
        per_unit_y = self._plausible("FocalPlaneYResolution", _TAG_FOCAL_PLANE_Y_RESOLUTION, _RESOLUTION_RANGE)
        unit = self._number(_TAG_FOCAL_PLANE_RESOLUTION_UNIT)
        unit_mm = _UNIT_MM.get(_INCH if unit is None else unit)  # the inch is the standard's default
        if per_unit_x is None or per_unit_y is None or unit_mm is None:
            return None
        if self._recorded_px is None or self._frame_px is None:
            self.notes.append("EXIF FocalPlaneXResolution refers to an unknown number of pixels and was not used")
            return None
        if self._turned:
            per_unit_x, per_unit_y = per_unit_y, per_unit_x
        frame_mm = self._recorded_px[0] / per_unit_x * unit_mm, self._recorded_px[1] / per_unit_y * unit_mm
        # With digital zoom the frame is a part of the sensor.
        long_mm = max(frame_mm) * max(1.0, self._number(_TAG_DIGITAL_ZOOM_RATIO) or 1.0)
        if not _SENSOR_LONG_SIDE_MM_RANGE[0] <= long_mm <= _SENSOR_LONG_SIDE_MM_RANGE[1]:
            self.notes.append(f"EXIF FocalPlaneXResolution gives a sensor {long_mm:.3g} mm long and was not used")
            return None
        axis = 1 if self._rotated else 0
        return frame_mm[axis] * self._stored_px[axis] / self._frame_px[axis]

    def focus_distance_m(self) -> Value | None:
        if getattr(self._raw(_TAG_SUBJECT_DISTANCE), "numerator", None) == _INFINITE_DISTANCE:
            return Value(math.inf, "read", "EXIF SubjectDistance says infinity")
        number = self._plausible("SubjectDistance", _TAG_SUBJECT_DISTANCE, _SUBJECT_DISTANCE_M_RANGE)
        return None if number is None else Value(number, "read", "EXIF SubjectDistance")


def _solve_geometry(given: dict[str, Value], tags: _ExifReader, width_px: int, height_px: int) -> dict[str, Value]:
    """Focal length, field of view and sensor width from the first two known, in the order of ``read_camera``.

    The field of view is held as a 35 mm equivalent, in which it is mostly stated.
    """
    aspect = height_px / width_px
    # Focal length over picture width, for a 35 mm equivalent of 1 mm.
    ratio_per_mm = math.hypot(1.0, aspect) / optics.FULL_FRAME_DIAGONAL_MM
    read_focal, read_35mm = tags.focal_length_mm(), tags.focal_length_35mm()
    focal_px = given.get("focal_length_px")

    def view_from_px() -> Value | None:
        if focal_px is None:
            return None
        return Value(focal_px.value / width_px / ratio_per_mm, "derived", "it follows from the focal length in pixels")

    known: dict[str, Value] = {}
    candidates: tuple[tuple[str, Callable[[], Value | None]], ...] = (
        ("focal length", lambda: given.get("focal_length_mm")),
        ("field of view", lambda: given.get("focal_length_35mm")),
        ("field of view", view_from_px),
        ("sensor width", lambda: given.get("sensor_width_mm")),
        ("focal length", lambda: read_focal),
        ("sensor width", lambda: tags.sensor_width_mm(read_focal, read_35mm, aspect)),
        ("field of view", lambda: read_35mm),
        ("field of view", lambda: _assumed_focal_35mm(known.get("focal length"))),
        ("sensor width", lambda: _assumed_sensor_width(aspect)),
    )
    for kind, candidate in candidates:
        if len(known) == 2:
            break
        if kind not in known and (value := candidate()) is not None:
            known[kind] = value

    focal, view, sensor = (known.get(kind) for kind in ("focal length", "field of view", "sensor width"))
    if focal is None:
        focal = _follow(view.value * ratio_per_mm * sensor.value, known)
    elif sensor is None:
        sensor = _follow(focal.value / (view.value * ratio_per_mm), known)
    else:
        view = _follow(focal.value / sensor.value / ratio_per_mm, known)
        if read_35mm is not None and math.isclose(view.value, read_35mm.value, rel_tol=1e-9):
            view = read_35mm  # the sensor width came from it
    if focal_px is None:
        # Computed from what was stated as an equivalent; a derived or assumed one passes its own origin on.
        stated = view.source in ("given", "read")
        source, note = ("derived", "it follows from the 35 mm equivalent") if stated else (view.source, view.note)
        focal_px = Value(view.value * ratio_per_mm * width_px, source, note)
    return {
        "focal_length_mm": focal,
        "focal_length_35mm": view,
        "sensor_width_mm": sensor,
        "focal_length_px": focal_px,
    }


def _follow(value: float, known: dict[str, Value]) -> Value:
    """The third of focal length, field of view and sensor width, as assumed as the two that it follows from."""
    assumed = any(part.source == "assumed" for part in known.values())
    parts = [f"the assumed {kind}" if part.source == "assumed" else f"the {kind}" for kind, part in known.items()]
    return Value(value, "assumed" if assumed else "derived", f"it follows from {parts[0]} and {parts[1]}")


def _assumed_focal_35mm(focal: Value | None) -> Value:
    if focal is not None and focal.value > ASSUMED_FOCAL_LENGTH_35MM:
        return Value(focal.value, "assumed", "nothing tells the size of the sensor, so a full frame is taken")
    note = (
        f"nothing tells the field of view, so that of a {ASSUMED_FOCAL_LENGTH_35MM:g} mm lens on a full frame is taken"
    )
    return Value(ASSUMED_FOCAL_LENGTH_35MM, "assumed", note)


def _assumed_sensor_width(aspect: float) -> Value:
    width_mm = optics.FULL_FRAME_DIAGONAL_MM / math.hypot(1.0, aspect)
    return Value(width_mm, "assumed", "nothing tells the size of the sensor, so the diagonal of a full frame is taken")


def _f_number(given: dict[str, Value], tags: _ExifReader) -> Value:
    assumed = Value(ASSUMED_F_NUMBER, "assumed", "nothing tells the f-number, so a middle one is taken")
    return given.get("f_number") or tags.f_number() or assumed


def _focus_distance(given: dict[str, Value], tags: _ExifReader, focal_mm: float) -> Value:
    if "focus_distance_m" in given:
        return given["focus_distance_m"]
    read = tags.focus_distance_m()
    if read is not None and read.value * 1000 > focal_mm:
        return read
    if read is not None:
        tags.notes.append(f"EXIF SubjectDistance is {read.value:g} m, within the focal length, and was not used")
    distance_m = max(ASSUMED_FOCUS_DISTANCE_M, 10 * focal_mm / 1000)
    return Value(distance_m, "assumed", "nothing tells the focus distance, so that of a person or a table is taken")
