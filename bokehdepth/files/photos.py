"""Opening photos as upright 8-bit sRGB.

``open_photo`` either returns a picture together with sentences on everything that was done to it, or raises
``InputError`` with one sentence. Size limits are decided from the header, before any pixel is decoded.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
from PIL import ImageCms, ImageOps
from PIL.ExifTags import Base as Tag

from ..camera.exif import ROTATED_ORIENTATIONS, read_exif, xmp_orientation
from ..errors import InputError
from .colours import Declared, coded_colours, declared_colours, declared_to_srgb, icc_to_srgb
from .formats import FORMATS, PictureFile, open_primary

MIN_SIDE_PX = 32
"""Shortest side that a photo may have."""

MAX_ASPECT = 8
"""Longest side over shortest that a photo may have: a thin strip becomes many times its area on a network's grid."""

MAX_PIXELS = 100_000_000
"""Most pixels that a photo may have; its header decides."""

MAX_FILE_BYTES = 256 * 1024 * 1024
"""Largest photo file: 100 million pixels take less in every common compressed format."""

_TURNING = range(2, 9)  # orientations that are not upright

# What PIL's decoders and libheif raise on files that are cut short, damaged or dressed up.
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    EOFError,
    RuntimeError,
    struct.error,
    zlib.error,
)


@dataclass(frozen=True)
class Photo:
    """An upright 8-bit sRGB picture and what is known about it; ``camera.read_camera`` accepts it as it is.

    Attributes:
        image: mode ``"RGB"``, turned upright, without metadata.
        exif: EXIF entries as they stood in the file, None where damaged; their orientation is applied to ``image`` (of
            a HEIC it says 1, since the file turns its picture by itself).
        notes: one sentence, without its full stop, on each change to the pixels, in order; empty for plain sRGB.
        path: the file it came from, None for an image that was passed in memory.
    """

    image: PIL.Image.Image
    exif: PIL.Image.Exif | None
    notes: tuple[str, ...]
    path: Path | None


def open_photo(
    source: str | os.PathLike[str] | PIL.Image.Image,
    *,
    max_pixels: int = MAX_PIXELS,
    max_file_bytes: int = MAX_FILE_BYTES,
) -> Photo:
    """Open a photo (JPEG, MPO, PNG, WebP, TIFF, AVIF, HEIC, GIF or BMP) of any mode as upright 8-bit sRGB.

    In this order: the file's primary picture is taken (a HEIC's primary item, a TIFF's full-size page, else the first
    frame), 16-bit, 32-bit and float grey is reduced to 8 bit, transparency is composited over white, colours are
    converted to sRGB from what the file declares (an ICC profile, else the code points, chunks or tags of its format,
    else EXIF), and the EXIF orientation is applied; one that only XMP states is not, as in browsers. Each step that
    changes something is named in ``Photo.notes``.

    Args:
        source: path of a file, or a PIL image (which is left as it is).
        max_pixels: most pixels allowed. PIL's own limits stay in force: it warns from 89 million on and refuses 179
            million, unless the caller has changed ``PIL.Image.MAX_IMAGE_PIXELS``.
        max_file_bytes: largest file allowed.

    Returns:
        The photo; its pixels are its own.

    Raises:
        InputError: there is no such file, it is camera RAW or of another format, damaged, cut short, too large, under
            32 px on a side, or one side is more than eight times the other.
    """
    if isinstance(source, PIL.Image.Image):
        with _decoding("image", max_pixels):
            is_one_of_several = getattr(source, "is_animated", False)
        notes = ["one of several frames was taken"] if is_one_of_several else []
        return _read(source, "image", None, max_pixels, notes)
    if not isinstance(source, (str, os.PathLike)):
        raise InputError(f"source must be a path or a PIL image, got {type(source).__name__}.")
    path = Path(source)
    label = f"photo {path.name!r}"
    with _opened(path, label, max_pixels, max_file_bytes) as (image, notes):
        return _read(image, label, path, max_pixels, notes)


def upright_size_px(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Width and height of the photo in a file as ``open_photo`` returns it, from its header alone.

    Raises:
        InputError: there is no such file, it is camera RAW, of another format or damaged.
    """
    path = Path(path)
    label = f"photo {path.name!r}"
    with _opened(path, label, MAX_PIXELS, MAX_FILE_BYTES) as (image, _):
        if image.format == "TIFF":
            return image.size  # PIL tells that of the upright picture
        with _decoding(label, MAX_PIXELS):  # the EXIF of a PNG may stand behind its pixels
            exif = read_exif(image)
        rotated = exif is not None and exif.get(Tag.Orientation) in ROTATED_ORIENTATIONS
        return image.size[::-1] if rotated else image.size


def read_text_chunks(path: str | os.PathLike[str]) -> dict[str, str]:
    """Text chunks of a PNG, name to text, wherever in the file they stand; none of a file of another format.

    Raises:
        InputError: there is no such file, it is camera RAW, of another format or damaged.
    """
    path = Path(path)
    label = f"photo {path.name!r}"
    with _opened(path, label, MAX_PIXELS, MAX_FILE_BYTES) as (image, _), _decoding(label, MAX_PIXELS):
        return dict(getattr(image, "text", {}))


@contextmanager
def _opened(
    path: Path, label: str, max_pixels: int, max_file_bytes: int
) -> Iterator[tuple[PIL.Image.Image, list[str]]]:
    """A file's primary picture, not decoded yet, and notes on which it is."""
    _check_file(path, label, max_file_bytes)
    with _decoding(label, max_pixels):
        file = PictureFile(path)
    with file:
        with _decoding(label, max_pixels):
            image, notes = open_primary(file, path, label)
        with image:
            yield image, notes


def _check_file(path: Path, label: str, max_file_bytes: int) -> None:
    if path.is_dir():
        raise InputError(f"{label} must be a file, but it is a folder.")
    if not path.is_file():
        raise InputError(f"{label} does not exist.")
    size_bytes = path.stat().st_size
    if size_bytes > max_file_bytes:
        raise InputError(f"{label} has {size_bytes:,} bytes; at most {max_file_bytes:,} are read.")


@contextmanager
def _decoding(label: str, max_pixels: int) -> Iterator[None]:
    """Turn whatever PIL raises while it opens and decodes into one sentence."""
    try:
        yield
    except InputError:
        raise
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as error:
        raise InputError(
            f"{label} declares too many pixels in its header; at most {max_pixels:,} are read."
        ) from error
    except PermissionError as error:
        raise InputError(f"{label} may not be read by this user.") from error
    except PIL.UnidentifiedImageError as error:
        raise InputError(f"{label} must be a {FORMATS}, got a file that is not a picture of these.") from error
    except _DECODE_ERRORS as error:
        raise InputError(
            f"{label} is damaged or cut short and cannot be decoded: {' '.join(str(error).split()).rstrip(' .')}."
        ) from error


def _read(source: PIL.Image.Image, label: str, path: Path | None, max_pixels: int, which_picture: list[str]) -> Photo:
    width_px, height_px = source.size
    if width_px * height_px > max_pixels:
        raise InputError(f"{label} has {width_px} x {height_px} pixels; at most {max_pixels:,} in all are read.")
    if min(width_px, height_px) < MIN_SIDE_PX:
        raise InputError(f"{label} has {width_px} x {height_px} pixels; each side must have at least {MIN_SIDE_PX}.")
    if max(width_px, height_px) > MAX_ASPECT * min(width_px, height_px):
        raise InputError(f"{label} has {width_px} x {height_px} pixels; a side may be {MAX_ASPECT} times the other.")
    notes = list(which_picture)
    with _decoding(label, max_pixels):
        coded = coded_colours(source)
        turned_by_pil = None
        if source.format == "TIFF":
            # Decoding a TIFF turns it upright and forgets the tag; reading its EXIF first keeps XMP out of that.
            turned_by_pil = source.tag_v2.get(Tag.Orientation)
            read_exif(source)
            # Of a file by name PIL maps uncompressed pixels into memory, by the sides of the upright picture.
            name, source.filename = source.filename, ""
        source.load()
        if source.format == "TIFF":
            source.filename = name
    exif = read_exif(source)
    if exif is None:
        notes.append("the EXIF block is damaged and was ignored")
    image = _to_rgb(source, label, notes, exif, coded)
    orientation = None if exif is None else exif.get(Tag.Orientation)
    image = image.copy() if image is source else image
    image.info = {}
    if orientation in _TURNING:
        image.getexif()[Tag.Orientation] = orientation
        ImageOps.exif_transpose(image, in_place=True)
    if orientation in _TURNING or turned_by_pil in _TURNING:
        notes.append(f"the EXIF orientation {orientation or turned_by_pil} was applied")
    elif (stated := xmp_orientation(source)) in _TURNING:
        notes.append(f"the orientation {stated} was not applied, as in browsers: XMP states it and EXIF does not")
    return Photo(image, exif, tuple(notes), path)


def _to_rgb(
    source: PIL.Image.Image, label: str, notes: list[str], exif: PIL.Image.Exif | None, coded: Declared | None
) -> PIL.Image.Image:
    """Return an RGB image in sRGB, adding a sentence to ``notes`` for each step that changed something."""
    image = source
    if image.mode == "F" or image.mode.startswith("I"):
        image = _grey_to_8_bit(image, label, notes)
    if image.has_transparency_data:
        image = _over_white(image, notes)
    elif image.mode in ("P", "1", "YCbCr", "HSV", "RGBX"):
        notes.append(f"mode {image.mode} was converted to RGB")
        image = image.convert("RGB")
    if image.mode == "LAB":
        notes.append("mode LAB was converted to sRGB")
        return ImageCms.profileToProfile(
            image, ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    if source.info.get("bit_depth", 8) > 8:
        notes.append(f"{source.info['bit_depth']} bits a channel were reduced to 8")
    # A PNG's code points overrule its profile, as its standard says; AVIF and HEIC have one or the other.
    profile_bytes = None if coded else source.info.get("icc_profile")
    if profile_bytes:
        image = icc_to_srgb(image, profile_bytes, notes)
    elif declared := coded or declared_colours(source, exif):
        image = declared_to_srgb(image, declared, notes)
    if image.mode != "RGB":
        how = "" if image.mode == "L" else ", without a colour profile"
        notes.append(f"mode {image.mode} was converted to RGB{how}")
        image = image.convert("RGB")
    return image


def _grey_to_8_bit(image: PIL.Image.Image, label: str, notes: list[str]) -> PIL.Image.Image:
    """Reduce integer or float grey to 8 bit by its full range; PIL's own conversion clips at 255."""
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise InputError(f"{label} holds pixels that are not finite numbers.")
    if image.mode == "F" and 0 <= low and high <= 1:
        note, low, high = "float grey was reduced to 8 bit from 0 to 1", 0.0, 1.0
    elif image.mode != "F" and 0 <= low and high <= 65535:
        note, low, high = "16-bit grey was reduced to 8 bit", 0.0, 65535.0
    else:
        kind = "float" if image.mode == "F" else "32-bit"
        note = f"{kind} grey was reduced to 8 bit from its range {low:g} to {high:g}"
    if image.has_transparency_data:
        note += "; its transparent level was ignored"
    notes.append(note)
    # A picture of one value outside the common ranges has no range to scale by; it becomes black.
    scaled = (values.astype(np.float32) - low) * (255.0 / (high - low) if high > low else 0.0)
    grey = PIL.Image.fromarray(np.rint(scaled).astype(np.uint8))
    grey.info = {key: value for key, value in image.info.items() if key != "transparency"}
    return grey


def _over_white(image: PIL.Image.Image, notes: list[str]) -> PIL.Image.Image:
    mode = image.mode
    opaque = "L" if mode in ("L", "LA", "La") else "RGB"  # grey stays grey for a grey colour profile
    if mode == "La":
        image = image.convert("LA")
    rgba = image.convert("RGBA")
    if rgba.getextrema()[3][0] == 255:
        notes.append(f"mode {mode} was converted to {opaque}; its alpha is opaque throughout")
        return rgba.convert(opaque)
    notes.append("transparency was composited over white")
    white = PIL.Image.new("RGBA", rgba.size, "white")
    return PIL.Image.alpha_composite(white, rgba).convert(opaque)
