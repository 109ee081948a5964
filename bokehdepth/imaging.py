"""Opening photos of any kind as upright 8-bit sRGB, and the colour transfer of section 8.2.

``open_photo`` either returns a picture together with sentences on everything that was done to it, or raises
``InputError`` with one sentence. Size limits are decided from the header, before any pixel is decoded.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
from PIL import ImageCms

from .camera import TAG_ORIENTATION, read_exif
from .errors import InputError

MIN_SIDE_PX = 32
"""Shortest side that a photo may have."""

MAX_ASPECT = 8
"""Longest side over shortest that a photo may have: a thin strip becomes many times its area on a network's grid."""

MAX_PIXELS = 100_000_000
"""Most pixels that a photo may have; its header decides."""

MAX_FILE_BYTES = 256 * 1024 * 1024
"""Largest photo file: 100 million pixels take less in every common compressed format."""

_TRANSPOSE = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}

_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")

# What PIL's decoders raise on files that are cut short, damaged or dressed up.
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    EOFError,
    struct.error,
    zlib.error,
)

# Levels of 255 by which a colour profile may differ from sRGB without being converted: rounding, not colour.
_SRGB_TOLERANCE = 2


@dataclass(frozen=True)
class Photo:
    """An upright 8-bit sRGB picture and what is known about it; ``camera.read_camera`` accepts it as it is.

    Attributes:
        image: mode ``"RGB"``, turned upright, without metadata.
        exif: EXIF entries as they stood in the file, None where damaged; their orientation is applied to ``image``.
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
    """Open a photo of any mode and format that PIL reads as upright 8-bit sRGB.

    In this order: the first frame of several is taken, 16-bit, 32-bit and float grey is reduced to 8 bit, transparency
    is composited over white, an embedded colour profile is converted to sRGB, and the EXIF orientation is applied.
    Each step that changes something is named in ``Photo.notes``. HEIC files need the pillow-heif plugin, registered by
    the caller.

    Args:
        source: path of a file, or a PIL image (which is left as it is).
        max_pixels: most pixels allowed. PIL's own limits stay in force: it warns from 89 million on and refuses 179
            million, unless the caller has changed ``PIL.Image.MAX_IMAGE_PIXELS``.
        max_file_bytes: largest file allowed.

    Returns:
        The photo; its pixels are its own.

    Raises:
        InputError: there is no such file, it is no image, damaged, cut short, too large, under 32 px on a side, or one
            side is more than eight times the other.
    """
    if isinstance(source, PIL.Image.Image):
        return _read(source, "image", None, max_pixels)
    if not isinstance(source, (str, os.PathLike)):
        raise InputError(f"source must be a path or a PIL image, got {type(source).__name__}.")
    path = Path(source)
    label = f"photo {path.name!r}"
    _check_file(path, label, max_file_bytes)
    with _decoding(label, max_pixels, path):
        image = PIL.Image.open(path)
    with image:
        return _read(image, label, path, max_pixels)


def _check_file(path: Path, label: str, max_file_bytes: int) -> None:
    if path.is_dir():
        raise InputError(f"{label} must be a file, but it is a folder.")
    if not path.is_file():
        raise InputError(f"{label} does not exist.")
    size_bytes = path.stat().st_size
    if size_bytes > max_file_bytes:
        raise InputError(f"{label} has {size_bytes:,} bytes; at most {max_file_bytes:,} are read.")


@contextmanager
def _decoding(label: str, max_pixels: int, path: Path | None) -> Iterator[None]:
    """Turn whatever PIL raises while it opens and decodes into one sentence."""
    try:
        yield
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as error:
        raise InputError(
            f"{label} declares too many pixels in its header; at most {max_pixels:,} are read."
        ) from error
    except PermissionError as error:
        raise InputError(f"{label} may not be read by this user.") from error
    except PIL.UnidentifiedImageError as error:
        if path is not None and _is_heif(path):
            raise InputError(
                f"{label} is a HEIC/HEIF picture, which needs the pillow-heif plugin to be installed and registered."
            ) from error
        raise InputError(f"{label} is not a picture in a format that PIL reads.") from error
    except _DECODE_ERRORS as error:
        raise InputError(
            f"{label} is damaged or cut short and cannot be decoded: {str(error).rstrip('.')}."
        ) from error


def _is_heif(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(12)
    return head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS


def _read(source: PIL.Image.Image, label: str, path: Path | None, max_pixels: int) -> Photo:
    width_px, height_px = source.size
    if width_px * height_px > max_pixels:
        raise InputError(f"{label} has {width_px} x {height_px} pixels; at most {max_pixels:,} in all are read.")
    if min(width_px, height_px) < MIN_SIDE_PX:
        raise InputError(f"{label} has {width_px} x {height_px} pixels; each side must have at least {MIN_SIDE_PX}.")
    if max(width_px, height_px) > MAX_ASPECT * min(width_px, height_px):
        raise InputError(f"{label} has {width_px} x {height_px} pixels; a side may be {MAX_ASPECT} times the other.")
    notes: list[str] = []
    with _decoding(label, max_pixels, path):
        frames = getattr(source, "n_frames", 1)
        # Decoding a TIFF turns it upright and forgets the tag.
        turned_by_pil = source.tag_v2.get(TAG_ORIENTATION) if source.format == "TIFF" else None
        source.load()
    if frames > 1:
        notes.append(f"the first of {frames} frames was taken" if path else f"one of {frames} frames was taken")
    exif = read_exif(source)
    if exif is None:
        notes.append("the EXIF block is damaged and was ignored")
    image = _to_rgb(source, label, notes)
    orientation = None if exif is None else exif.get(TAG_ORIENTATION)
    if orientation in _TRANSPOSE:
        image = image.transpose(_TRANSPOSE[orientation])
    if orientation in _TRANSPOSE or turned_by_pil in _TRANSPOSE:
        notes.append(f"the EXIF orientation {orientation or turned_by_pil} was applied")
    image = image.copy() if image is source else image
    image.info = {}
    return Photo(image, exif, tuple(notes), path)


def _to_rgb(source: PIL.Image.Image, label: str, notes: list[str]) -> PIL.Image.Image:
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
    profile_bytes = source.info.get("icc_profile")
    if profile_bytes:
        image = _to_srgb(image, profile_bytes, notes)
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


def _to_srgb(image: PIL.Image.Image, profile_bytes: bytes, notes: list[str]) -> PIL.Image.Image:
    """Convert from an embedded colour profile to sRGB; profiles that cannot be used are named in ``notes``."""
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(profile_bytes))
        name = ImageCms.getProfileDescription(profile).strip() or "without a name"
        space = profile.profile.xcolor_space.strip()
    except (OSError, ValueError, ImageCms.PyCMSError):
        notes.append("the embedded colour profile is damaged and was ignored")
        return image
    if {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK"}.get(image.mode) != space:
        notes.append(f"the embedded colour profile {name!r} is for {space} and was ignored")
        return image
    try:
        to_srgb = ImageCms.buildTransform(
            profile,
            ImageCms.createProfile("sRGB"),
            image.mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except ImageCms.PyCMSError:
        notes.append(f"the embedded colour profile {name!r} cannot be converted from and was ignored")
        return image
    if image.mode == "RGB" and _changes_little(to_srgb):
        return image
    notes.append(f"colours were converted from the profile {name!r} to sRGB")
    return ImageCms.applyTransform(image, to_srgb)


def _changes_little(to_srgb: ImageCms.ImageCmsTransform) -> bool:
    """Whether a transform leaves a grid of RGB colours where they are: the profile is sRGB whatever it is called."""
    levels = np.arange(0, 256, 17, dtype=np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(levels.size, -1, 3)
    converted = np.asarray(ImageCms.applyTransform(PIL.Image.fromarray(grid), to_srgb))
    return int(np.abs(converted.astype(np.int16) - grid).max()) <= _SRGB_TOLERANCE


# Linear sRGB to CIE XYZ (IEC 61966-2-1), and the D65 white of CIELAB.
_XYZ_FROM_RGB = np.array(
    [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]]
)
_RGB_FROM_XYZ = np.linalg.inv(_XYZ_FROM_RGB)
_WHITE_XYZ = np.array([0.95047, 1.0, 1.08883])
_LAB_EPSILON = (6 / 29) ** 3
_LAB_SLOPE = (29 / 6) ** 2 / 3


def srgb_to_lab(image: np.ndarray) -> np.ndarray:
    """Convert sRGB to CIELAB under D65 (2 degree observer).

    Args:
        image: (H, W, 3) floating point, sRGB in [0, 1].

    Returns:
        (H, W, 3) of the same dtype: L in [0, 100], a and b about [-128, 127].

    Raises:
        InputError: shape, dtype or range are wrong.
    """
    image = _check_image(image, "image")
    encoded = image.astype(np.float64)
    linear = np.where(encoded > 0.04045, ((encoded + 0.055) / 1.055) ** 2.4, encoded / 12.92)
    relative = linear @ _XYZ_FROM_RGB.T / _WHITE_XYZ
    x, y, z = np.moveaxis(np.where(relative > _LAB_EPSILON, np.cbrt(relative), relative * _LAB_SLOPE + 4 / 29), -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1).astype(image.dtype)


def lab_to_srgb(lab: np.ndarray) -> np.ndarray:
    """Convert CIELAB under D65 to sRGB; colours that sRGB does not have are clipped to [0, 1].

    Args:
        lab: (H, W, 3) floating point, finite.

    Returns:
        (H, W, 3) of the same dtype, sRGB in [0, 1].

    Raises:
        InputError: shape or dtype are wrong, or a value is not finite.
    """
    _check_array(lab, "lab")
    lightness, a, b = np.moveaxis(lab.astype(np.float64), -1, 0)
    y = (lightness + 16) / 116
    roots = np.stack([y + a / 500, y, y - b / 200], axis=-1)
    relative = np.where(roots > 6 / 29, roots**3, (roots - 4 / 29) / _LAB_SLOPE)
    linear = np.clip((relative * _WHITE_XYZ) @ _RGB_FROM_XYZ.T, 0, 1)
    encoded = np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, linear * 12.92)
    return np.clip(encoded, 0, 1).astype(lab.dtype)


def color_transfer(image: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Give an image the colour statistics of another: the colour transfer step of section 8.2.

    Reinhard's global transfer: each CIELAB channel is shifted and scaled to the mean and standard deviation of the
    reference. A channel of one value throughout has nothing to scale and is shifted only. Results outside sRGB are
    clipped, the one loss of this step.

    Args:
        image: (H, W, 3) floating point, sRGB in [0, 1].
        reference: (H', W', 3) floating point, sRGB in [0, 1]; its size is free.

    Returns:
        (H, W, 3), dtype of ``image``, sRGB in [0, 1].

    Raises:
        InputError: shape, dtype or range of one of the two are wrong.
    """
    image, reference = _check_image(image, "image"), _check_image(reference, "reference")
    lab, wanted = srgb_to_lab(image.astype(np.float64)), srgb_to_lab(reference.astype(np.float64))
    mean, std = lab.mean(axis=(0, 1)), lab.std(axis=(0, 1))
    wanted_mean, wanted_std = wanted.mean(axis=(0, 1)), wanted.std(axis=(0, 1))
    # Below this the spread is rounding of the conversion, which a ratio would blow up.
    flat = std < 1e-6
    scale = np.where(flat, 1.0, wanted_std / np.where(flat, 1.0, std))
    return lab_to_srgb((lab - mean) * scale + wanted_mean).astype(image.dtype)


def _check_array(array: np.ndarray, name: str) -> np.ndarray:
    if not isinstance(array, np.ndarray) or array.ndim != 3 or array.shape[-1] != 3 or array.size == 0:
        raise InputError(f"{name} must be an array of shape (H, W, 3), got {type(array).__name__} {np.shape(array)}.")
    if array.dtype.kind != "f":
        raise InputError(f"{name} must be floating point, got dtype {array.dtype}.")
    if not np.isfinite(array).all():
        raise InputError(f"{name} must be finite, got NaN or infinity.")
    return array


def _check_image(array: np.ndarray, name: str) -> np.ndarray:
    low, high = _check_array(array, name).min(), array.max()
    if low < 0 or high > 1:
        raise InputError(f"{name} must be in [0, 1], got values from {low:g} to {high:g}.")
    return array
