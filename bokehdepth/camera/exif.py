"""What the EXIF of a photo says about its lens and sensor, each source held against the others.

EXIF is written by many hands and often wrong: a tag that cannot be true (0/0, an f-number of 0, a sensor 1 mm wide,
text where a number belongs) counts as absent, and so does one that a better source contradicts. What is set aside, and
a sensor that one source alone tells, is named in ``ExifTags.notes``.
"""

from __future__ import annotations

import math
import re
import struct
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

import PIL.Image
from PIL.ExifTags import IFD
from PIL.ExifTags import Base as Tag

from . import lens as optics

Source = Literal["given", "read", "derived", "assumed"]

ROTATED_ORIENTATIONS = (5, 6, 7, 8)
"""Values of the orientation tag that exchange width and height."""

_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')

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
# Pixels are square: resolutions along x and y that differ by more were not both measured. Cameras round them to 0.5 %.
_SQUARE_TOLERANCE = 0.005
_PIXEL_PITCH_MM_RANGE = (0.0004, 0.1)  # of a picture, which cameras also write at a fraction of their pixels

# Width and height in mm of the sensors of cameras that state no 35 mm equivalent and often a wrong focal-plane
# resolution, by "make model", as their makers publish them; within 2 % inside a line.
_MODEL_TOLERANCE = 0.05
_SENSORS_MM = (
    (r"CANON EOS[- ](1D ?X|1DS|[56]D|R([13568](?!\d)|[PA]?$))", (35.9, 24.0)),
    (r"CANON EOS[- ]1D", (28.1, 18.7)),
    (r"CANON EOS (M|R\d|REBEL|KISS|DIGITAL|D[36]0|\d+D)", (22.3, 14.9)),
    (r"(OLYMPUS|OM DIGITAL).* (E-([PM]|[3456]\d0|[135]$)|OM-[135])", (17.3, 13.0)),
)
# Aspect ratios of a stored picture and of its recorded pixel counts that differ by more than this mean a crop.
_ASPECT_TOLERANCE = 0.01


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


def read_exif(image: PIL.Image.Image) -> PIL.Image.Exif | None:
    """EXIF of a picture, or None where it is damaged beyond reading; without EXIF an empty one.

    Args:
        image: any PIL image.

    Returns:
        The EXIF entries, of which ``get_ifd(IFD.Exif)`` holds the photographic ones. PIL adds an orientation that only
        XMP states; it is taken out again, since no browser and no camera goes by it.
    """
    try:
        exif = image.getexif()
        exif.get_ifd(IFD.Exif)
        if Tag.Orientation in exif and not _states_orientation(image):
            del exif[Tag.Orientation]
    except (SyntaxError, struct.error, ValueError, TypeError, KeyError, OSError):
        return None  # the errors that PIL raises on damaged TIFF structures
    return exif


def xmp_orientation(image: PIL.Image.Image) -> int | None:
    """Orientation, 1 to 8 as the EXIF tag, that the XMP packet in a picture's ``info`` states; None without one."""
    packet = image.info.get("XML:com.adobe.xmp") or image.info.get("xmp") or b""
    packet = packet.encode("utf-8", "replace") if isinstance(packet, str) else packet
    stated = _XMP_ORIENTATION.search(packet)
    return None if stated is None else int(stated[1])


def _states_orientation(image: PIL.Image.Image) -> bool:
    """Whether the orientation that PIL tells stands in EXIF or among TIFF's own tags, not in XMP alone."""
    if hasattr(image, "tag_v2"):
        return Tag.Orientation in image.tag_v2
    if xmp_orientation(image) is None:
        return True
    block = PIL.Image.Exif()
    if "exif" in image.info:
        block.load(image.info["exif"])
        return Tag.Orientation in block
    return "Raw profile type exif" in image.info  # an old PNG text chunk; whoever wrote it knew EXIF


class ExifTags:
    """Plausible values of the tags that matter; ``notes`` gathers a sentence on each one that was set aside."""

    def __init__(self, exif: PIL.Image.Exif | None, stored_px: tuple[int, int], rotated: bool) -> None:
        self.notes: list[str] = []
        # Some writers put the photographic tags beside the image tags instead of into their own directory.
        self._directories = () if exif is None else (exif.get_ifd(IFD.Exif), exif)
        if exif is None:
            self.notes.append("the EXIF block is damaged and was not used")
        # The tags describe the picture as stored, before its orientation is applied.
        self._stored_px = stored_px
        self._rotated = rotated
        self._recorded_px = self._recorded_counts()
        self._frame_px, self._cropped = self._frame()

    def _raw(self, tag: int) -> Any:
        raw = next((directory[tag] for directory in self._directories if tag in directory), None)
        return raw[0] if isinstance(raw, tuple) and len(raw) == 1 else raw

    def _number(self, tag: int) -> float | None:
        raw = self._raw(tag)
        if isinstance(raw, bool) or not isinstance(raw, Real):
            return None
        return float(raw) if math.isfinite(raw) else None

    def _plausible(self, tag: Tag, bounds: tuple[float, float]) -> float | None:
        number = self._number(tag)
        if number is None:
            if self._raw(tag) is not None:
                self.notes.append(f"EXIF {tag.name} holds no number and was not used")
            return None
        if bounds[0] <= number <= bounds[1]:
            return number
        if number != 0:  # 0 is how many cameras say "unknown"
            self.notes.append(f"EXIF {tag.name} is {number:g}, which cannot be, and was not used")
        return None

    def _recorded_counts(self) -> tuple[float, float] | None:
        """Pixel counts that the camera recorded, along the stored picture's axes.

        Software that turns the pixels upright often leaves the counts as they were.
        """
        recorded_x, recorded_y = self._number(Tag.ExifImageWidth), self._number(Tag.ExifImageHeight)
        if recorded_x is None or recorded_y is None or min(recorded_x, recorded_y) <= 0:
            return None
        stored_x, stored_y = self._stored_px
        turned = (stored_x - stored_y) * (recorded_x - recorded_y) < 0
        return (recorded_y, recorded_x) if turned else (recorded_x, recorded_y)

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
        """F-number of the exposure, None where nothing tells it."""
        number = self._plausible(Tag.FNumber, _F_NUMBER_RANGE)
        if number is not None:
            return Value(number, "read", "EXIF FNumber")
        apex = self._plausible(Tag.ApertureValue, _APERTURE_VALUE_RANGE)
        return None if apex is None else Value(2 ** (apex / 2), "derived", "EXIF ApertureValue, N = 2^(Av/2)")

    def focal_length_mm(self) -> Value | None:
        """True focal length, None where nothing tells it."""
        number = self._plausible(Tag.FocalLength, _FOCAL_LENGTH_MM_RANGE)
        return None if number is None else Value(number, "read", "EXIF FocalLength")

    def focal_length_35mm(self, focal_mm: Value | None) -> Value | None:
        """35 mm equivalent of this picture: as read, or longer where the picture is cropped.

        Args:
            focal_mm: true focal length, with which it must give a sensor that there is.
        """
        number = self._plausible(Tag.FocalLengthIn35mmFilm, _FOCAL_LENGTH_35MM_RANGE)
        if number is None:
            return None
        if focal_mm is not None:
            short_over_long = min(self._stored_px) / max(self._stored_px)
            long_mm = optics.sensor_width_mm(focal_mm.value, number, 1.0, short_over_long) * self._digital_zoom()
            if not self._is_a_sensor(long_mm, "FocalLengthIn35mmFilm"):
                return None
        if not self._cropped:
            return Value(number, "read", "EXIF FocalLengthIn35mmFilm")
        number *= math.hypot(*self._frame_px) / math.hypot(*self._stored_px)
        return Value(number, "derived", "EXIF FocalLengthIn35mmFilm and the crop from the recorded pixel counts")

    def sensor_width_mm(self, focal_mm: Value | None, focal_35mm: Value | None, aspect: float) -> Value | None:
        """Sensor width along the upright image's width, from whichever sources stand up to each other.

        Focal-plane resolution is the finest and the least reliable: programs that make a photo smaller rewrite the
        pixel counts that it refers to, and firmware states it wrongly. So it is taken where the 35 mm equivalent or
        the camera's model confirms it, and by itself only if it fits square pixels, marked as unconfirmed.

        Args:
            focal_mm: focal length, None where unknown.
            focal_35mm: its 35 mm equivalent, None where unknown.
            aspect: height of the upright image over its width.

        Returns:
            The width, None where nothing tells it.
        """
        if self._digital_zoom() > 1 and (focal_35mm is not None or self._number(Tag.FocalPlaneXResolution)):
            self.notes.append(
                f"EXIF DigitalZoomRatio is {self._digital_zoom():.3g}, which the field of view is taken to include"
            )
        witnesses: list[tuple[str, float, Value]] = []
        model_mm = self._model_width_mm()
        if model_mm is not None:
            witnesses.append(
                ("camera's model", _MODEL_TOLERANCE, Value(model_mm, "derived", "sensor of this camera model"))
            )
        if focal_mm is not None and focal_35mm is not None:
            width_mm = optics.sensor_width_mm(focal_mm.value, focal_35mm.value, 1.0, aspect)
            how = "EXIF focal length and 35 mm equivalent, by diagonals"
            # First, because it is about this very picture.
            witnesses.insert(0, ("35 mm equivalent", _SENSOR_TOLERANCE, Value(width_mm, "derived", how)))
        plane = self._focal_plane_width_mm()
        if plane is None:
            return witnesses[0][2] if witnesses else None
        plane_mm, disagreement = plane
        is_square = disagreement <= _SQUARE_TOLERANCE
        for name, tolerance, witness in witnesses:
            if is_square and abs(plane_mm / witness.value - 1) <= tolerance:
                how = f"EXIF focal-plane resolution and recorded pixel counts, confirmed by the {name}"
                return Value(plane_mm, "derived", how)
        if not is_square:
            self.notes.append(
                f"EXIF FocalPlaneXResolution and FocalPlaneYResolution differ by {disagreement:.1%} and were not used"
            )
            return witnesses[0][2] if witnesses else None
        if witnesses:
            name, _, witness = witnesses[0]
            self.notes.append(
                f"EXIF FocalPlaneXResolution was not used: it gives a sensor {plane_mm:.3g} mm wide where the {name} "
                f"gives {witness.value:.3g} mm"
            )
            return witness
        self.notes.append(
            f"a sensor {plane_mm:.3g} mm wide is unconfirmed: nothing but EXIF FocalPlaneXResolution tells it"
        )
        return Value(plane_mm, "derived", "EXIF focal-plane resolution and recorded pixel counts, unconfirmed")

    def _digital_zoom(self) -> float:
        return max(1.0, self._number(Tag.DigitalZoomRatio) or 1.0)

    def _is_a_sensor(self, long_mm: float, name: str) -> bool:
        """Whether there are sensors of such a long side; a note on the tag that gives it where there are none."""
        if _SENSOR_LONG_SIDE_MM_RANGE[0] <= long_mm <= _SENSOR_LONG_SIDE_MM_RANGE[1]:
            return True
        self.notes.append(f"EXIF {name} gives a sensor {long_mm:.3g} mm long and was not used")
        return False

    def _model_width_mm(self) -> float | None:
        """Width of the known sensor of this camera model that the upright picture covers."""
        if self._recorded_px is not None and self._frame_px is None:
            return None
        texts = [self._raw(tag) for tag in (Tag.Make, Tag.Model)]
        name = " ".join(text.strip("\0 ") for text in texts if isinstance(text, str)).upper()
        sensor_mm = next((size for pattern, size in _SENSORS_MM if re.search(pattern, name)), None)
        if sensor_mm is None:
            return None
        frame_px = self._frame_px or self._stored_px
        sides_mm = sensor_mm if frame_px[0] >= frame_px[1] else sensor_mm[::-1]
        # A frame of another shape than the sensor is the largest part of it that has this shape.
        pitch_mm = min(side_mm / side_px for side_mm, side_px in zip(sides_mm, frame_px, strict=True))
        return self._stored_px[1 if self._rotated else 0] * pitch_mm

    def _focal_plane_width_mm(self) -> tuple[float, float] | None:
        """Sensor width by the focal-plane resolution, and the share by which its two directions disagree."""
        per_unit_x = self._plausible(Tag.FocalPlaneXResolution, _RESOLUTION_RANGE)
        per_unit_y = self._plausible(Tag.FocalPlaneYResolution, _RESOLUTION_RANGE)
        unit = self._number(Tag.FocalPlaneResolutionUnit)
        unit_mm = _UNIT_MM.get(_INCH if unit is None else unit)  # the inch is the standard's default
        if per_unit_x is None or per_unit_y is None or unit_mm is None:
            return None
        if self._recorded_px is None or self._frame_px is None:
            self.notes.append("EXIF FocalPlaneXResolution refers to an unknown number of pixels and was not used")
            return None
        pitch_mm = unit_mm / math.sqrt(per_unit_x * per_unit_y)
        long_mm = max(self._recorded_px) * pitch_mm * self._digital_zoom()
        if not self._is_a_sensor(long_mm, "FocalPlaneXResolution"):
            return None
        if not _PIXEL_PITCH_MM_RANGE[0] <= pitch_mm <= _PIXEL_PITCH_MM_RANGE[1]:
            self.notes.append(f"EXIF FocalPlaneXResolution gives pixels of {pitch_mm * 1000:.3g} um and was not used")
            return None
        axis = 1 if self._rotated else 0
        width_mm = self._recorded_px[axis] * pitch_mm * self._stored_px[axis] / self._frame_px[axis]
        return width_mm, max(per_unit_x, per_unit_y) / min(per_unit_x, per_unit_y) - 1

    def focus_distance_m(self) -> Value | None:
        """Focus distance, infinity among them; None where nothing tells it."""
        if getattr(self._raw(Tag.SubjectDistance), "numerator", None) == _INFINITE_DISTANCE:
            return Value(math.inf, "read", "EXIF SubjectDistance says infinity")
        number = self._plausible(Tag.SubjectDistance, _SUBJECT_DISTANCE_M_RANGE)
        return None if number is None else Value(number, "read", "EXIF SubjectDistance")
