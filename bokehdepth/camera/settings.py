"""From a photo and its EXIF to lens settings and intrinsics, saying where every value came from.

A lens setting needs five numbers (f-number, focal length, field of view, sensor width, focus distance) and most photos
record only some of them. ``read_camera`` fills the rest from what is there, then from documented assumptions, and each
``Value`` says which: nothing is guessed in silence. What EXIF says is checked by ``exif`` and never raises; only
what the caller passes can.

The sources of the sensor width are those of section 8.3 of the paper, focal-plane resolution and the 35 mm
equivalent, each held against the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import PIL.Image
from PIL.ExifTags import Base as Tag

from ..errors import InputError
from . import lens as optics
from .exif import ROTATED_ORIENTATIONS, ExifTags, Value, read_exif

_MAX_GIVEN = 1e7
"""Of focal lengths and sensors, in mm and px: beyond it 32-bit numbers tell no angles of view apart."""

ASSUMED_F_NUMBER = 2.8
"""Middle of the apertures photos are taken with: phones f/1.5-2.4, compacts f/2-4, kit lenses f/3.5-5.6."""

ASSUMED_FOCAL_LENGTH_35MM = 28.0
"""Field of view of a photo that does not tell: main cameras of phones are 24-28 mm, compacts start at 24-35 mm."""

ASSUMED_FOCUS_DISTANCE_M = 2.0
"""Distance of a person or a table in a typical photo; EXIF seldom records it (section 8.1)."""


class PhotoLike(Protocol):
    """An upright picture beside the EXIF of its file, as ``photos.Photo``.

    The orientation that the EXIF still names has been applied to the pixels already; ``exif`` is None where damaged.
    """

    @property
    def image(self) -> PIL.Image.Image:
        """The upright picture."""

    @property
    def exif(self) -> PIL.Image.Exif | None:
        """EXIF entries as they stood in the file."""


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
        notes: sentences on EXIF entries that were not used, and why, and on those that nothing confirms.
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
        """Bokeh strength K of this camera and focus at 512 px width (Eq. 1); it may exceed the trained range.

        ``f_number`` is another one than the photo's own, finite and above 0, or ``InputError`` is raised.
        """
        f_number = self.f_number.value if f_number is None else f_number
        return optics.bokeh_strength(
            self.focal_length_mm.value, f_number, self.focus_distance_m.value, self.sensor_width_mm.value
        )

    def f_number_for(self, bokeh_strength: float) -> float:
        """F-number, not rounded to a stop, at which this camera and focus have the bokeh strength K > 0 (Eq. 1)."""
        return optics.f_number_for_strength(
            bokeh_strength, self.focal_length_mm.value, self.focus_distance_m.value, self.sensor_width_mm.value
        )

    def record(self) -> dict[str, dict[str, Any]]:
        """Each value with where it came from, as ``run_record`` takes them: ``{name: {"value", "source"}}``."""
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
    EXIF's focal length, EXIF's sensor width (focal-plane resolution if the 35 mm equivalent or the camera's model
    confirms it, else one of these two, else focal-plane resolution by itself and a note that it is unconfirmed),
    EXIF's 35 mm equivalent, a 28 mm equivalent (or the true focal length where that is longer, so that no sensor
    larger than a full frame is assumed), a sensor with the diagonal of a full frame. An unknown f-number is taken as
    f/2.8, an unknown focus distance as 2 m (ten focal lengths where that is more).

    Args:
        photo: a PIL image as opened (its EXIF orientation is considered, not applied to the pixels), or an
            ``photos.Photo``.
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
        f_number=f_number,
        focal_length_mm=focal_length_mm,
        focal_length_35mm=focal_length_35mm,
        focal_length_px=focal_length_px,
        sensor_width_mm=sensor_width_mm,
        focus_distance_m=focus_distance_m,
    )
    in_memory = isinstance(photo, PIL.Image.Image)
    exif = read_exif(photo) if in_memory else photo.exif
    size_px = photo.size if in_memory else photo.image.size
    # PIL turns TIFF pictures upright by itself, and tells their upright size before it does.
    as_stored = in_memory and photo.format != "TIFF"
    rotated = exif is not None and exif.get(Tag.Orientation) in ROTATED_ORIENTATIONS
    turned_px = size_px[::-1] if rotated else size_px
    stored_px, (width_px, height_px) = (size_px, turned_px) if as_stored else (turned_px, size_px)
    tags = ExifTags(exif, stored_px, rotated)

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


def _check_given(**named: float | None) -> dict[str, Value]:
    """Return the values that the caller gave, checked; a missing key means not given."""
    given = {
        name: Value(
            optics.check_number(value, name, infinity=name == "focus_distance_m"), "given", "given by the caller"
        )
        for name, value in named.items()
        if value is not None
    }
    for name, entry in given.items():
        if name != "focus_distance_m" and entry.value > _MAX_GIVEN:
            raise InputError(f"{name} must be at most {_MAX_GIVEN:,.0f}, got {entry.value:g}.")
    if "focal_length_35mm" in given and "focal_length_px" in given:
        raise InputError(
            f"focal_length_px = {named['focal_length_px']:g} and focal_length_35mm = {named['focal_length_35mm']:g} "
            "both state the field of view; give one of them."
        )
    view = given.keys() & {"focal_length_35mm", "focal_length_px"}
    if view and {"focal_length_mm", "sensor_width_mm"} <= given.keys():
        raise InputError(
            f"{view.pop()}, focal_length_mm and sensor_width_mm depend on each other; give at most two of the three."
        )
    return given


def _solve_geometry(given: dict[str, Value], tags: ExifTags, width_px: int, height_px: int) -> dict[str, Value]:
    """Focal length, field of view and sensor width from the first two known, in the order of ``read_camera``.

    The field of view is held as a 35 mm equivalent, in which it is mostly stated.
    """
    aspect = height_px / width_px
    # Focal length over picture width, for a 35 mm equivalent of 1 mm.
    ratio_per_mm = math.hypot(1.0, aspect) / optics.FULL_FRAME_DIAGONAL_MM
    read_focal = tags.focal_length_mm()
    read_35mm = tags.focal_length_35mm(read_focal)
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


def _f_number(given: dict[str, Value], tags: ExifTags) -> Value:
    assumed = Value(ASSUMED_F_NUMBER, "assumed", "nothing tells the f-number, so a middle one is taken")
    return given.get("f_number") or tags.f_number() or assumed


def _focus_distance(given: dict[str, Value], tags: ExifTags, focal_mm: float) -> Value:
    if "focus_distance_m" in given:
        return given["focus_distance_m"]
    read = tags.focus_distance_m()
    if read is not None and read.value * 1000 > focal_mm:
        return read
    if read is not None:
        tags.notes.append(f"EXIF SubjectDistance is {read.value:g} m, within the focal length, and was not used")
    distance_m = max(ASSUMED_FOCUS_DISTANCE_M, 10 * focal_mm / 1000)
    return Value(distance_m, "assumed", "nothing tells the focus distance, so that of a person or a table is taken")
