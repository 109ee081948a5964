"""Colours of a file as it declares them, to sRGB: ICC profiles and every other declaration that is in use.

A declaration that is no ICC profile (EXIF, PNG chunks, TIFF tags, the code points of ITU-T H.273 in PNG, AVIF and
HEIC) becomes a small ICC profile, so that littleCMS converts all of them in one way.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import PIL.Image
from PIL import ImageCms
from PIL.ExifTags import IFD
from PIL.ExifTags import Base as Tag

# Levels of 255 by which a colour profile may differ from sRGB without being converted: rounding, not colour.
_SRGB_TOLERANCE = 2

_EXIF_SRGB, _EXIF_ADOBE_RGB, _EXIF_UNCALIBRATED = 1, 2, 0xFFFF

# CIE 1931 chromaticities (x, y): white, then red, green and blue.
Chromaticities = tuple[tuple[float, float], ...]
_D65, _C = (0.3127, 0.3290), (0.310, 0.316)
_SRGB_XY = (_D65, (0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
_ADOBE_XY = (_D65, (0.64, 0.33), (0.21, 0.71), (0.15, 0.06))  # Adobe RGB (1998), section 4.3.1
_ADOBE_GAMMA = 563 / 256

# ITU-T H.273, tables 2 and 3.
_UNSPECIFIED = 2
_PRIMARIES: dict[int, tuple[str, Chromaticities]] = {
    1: ("BT.709", _SRGB_XY),
    4: ("BT.470 M", (_C, (0.67, 0.33), (0.21, 0.71), (0.14, 0.08))),
    5: ("BT.470 BG", (_D65, (0.64, 0.33), (0.29, 0.60), (0.15, 0.06))),
    6: ("BT.601", (_D65, (0.630, 0.340), (0.310, 0.595), (0.155, 0.070))),
    7: ("SMPTE 240M", (_D65, (0.630, 0.340), (0.310, 0.595), (0.155, 0.070))),
    8: ("film", (_C, (0.681, 0.319), (0.243, 0.692), (0.145, 0.049))),
    9: ("BT.2020", (_D65, (0.708, 0.292), (0.170, 0.797), (0.131, 0.046))),
    11: ("DCI-P3", ((0.314, 0.351), (0.680, 0.320), (0.265, 0.690), (0.150, 0.060))),
    12: ("Display P3", (_D65, (0.680, 0.320), (0.265, 0.690), (0.150, 0.060))),
    22: ("EBU 3213", (_D65, (0.630, 0.340), (0.295, 0.605), (0.155, 0.077))),
}
_VIDEO_CURVES = (1, 6, 14, 15)  # one camera curve under four numbers
_REFERENCE_WHITE_NITS = 203.0  # diffuse white of an HDR picture (ITU-R BT.2408)

# ICC's reference white D50, and the cone responses by which Bradford's method adapts to it.
_D50_XYZ = np.array([0.9642, 1.0, 0.8249])
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])

_LEVELS = np.arange(256) / 255
_MAX_PNG_CHUNKS = 1000  # before the pixels; writers make a dozen


@dataclass(frozen=True)
class Declared:
    """What a file says about its colours by other means than an ICC profile.

    Attributes:
        name: the colour space, for the sentence on it.
        by: what declares it.
        profile_bytes: the same as an ICC profile; None where the declaration cannot be converted from.
        remark: what a reader should know besides; where ``profile_bytes`` is None, the whole sentence.
    """

    name: str
    by: str
    profile_bytes: bytes | None
    remark: str = ""


def coded_colours(image: PIL.Image.Image) -> Declared | None:
    """Colours that a PNG, AVIF or HEIC file declares by the code points of ITU-T H.273; None without them.

    The picture has to be as opened: once its pixels are decoded they close the file, and PIL keeps nothing of these.
    """
    if image.format == "PNG":
        codes = _png_codes(image)
        return None if codes is None else _by_codes("PNG cICP", *codes)
    if image.format not in ("AVIF", "HEIF"):
        return None
    kind = "AVIF" if image.format == "AVIF" else "HEIC"
    nclx = _avif_codes(image) if kind == "AVIF" else image.info.get("nclx_profile")
    if not nclx or "icc_profile" in image.info:
        return None
    # The matrix and the range belong to the decoder, which has turned Y'CbCr into R'G'B' by them.
    return _by_codes(f"{kind} nclx", nclx["color_primaries"], nclx["transfer_characteristics"], 0, 1)


def declared_colours(image: PIL.Image.Image, exif: PIL.Image.Exif | None) -> Declared | None:
    """Colours that a picture without an ICC profile declares by PNG chunks, TIFF tags or EXIF; the first that does.

    None where there is none or it says sRGB; ``exif`` is None where damaged.
    """
    if "srgb" in image.info:
        return None
    if "gamma" in image.info or "chromaticity" in image.info:
        return _by_png_chunks(image.info.get("gamma"), image.info.get("chromaticity"))
    return None if exif is None else _by_exif(exif)


def icc_to_srgb(image: PIL.Image.Image, profile_bytes: bytes, notes: list[str]) -> PIL.Image.Image:
    """Convert a picture of mode RGB, L or CMYK from an embedded ICC profile to sRGB; another comes back as it is.

    ``notes`` gets one sentence if colours changed, or the profile cannot be used.
    """
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
        converted = _convert(image, profile)
    except ImageCms.PyCMSError:
        notes.append(f"the embedded colour profile {name!r} cannot be converted from and was ignored")
        return image
    if converted is not image:
        notes.append(f"colours were converted from the profile {name!r} to sRGB")
    return converted


def declared_to_srgb(image: PIL.Image.Image, declared: Declared, notes: list[str]) -> PIL.Image.Image:
    """Convert a picture of mode RGB or L from what a file declares to sRGB; another comes back as it is.

    ``notes`` gets one sentence if colours changed or the declaration was not used.
    """
    if image.mode not in ("RGB", "L"):
        return image
    if declared.profile_bytes is None:
        notes.append(declared.remark)
        return image
    rgb = image.convert("RGB")
    converted = _convert(rgb, ImageCms.ImageCmsProfile(io.BytesIO(declared.profile_bytes)))
    if converted is rgb:
        return image
    remark = f"; {declared.remark}" if declared.remark else ""
    notes.append(f"colours were converted from {declared.name}, declared by {declared.by}, to sRGB{remark}")
    return converted


def _convert(image: PIL.Image.Image, profile: ImageCms.ImageCmsProfile) -> PIL.Image.Image:
    to_srgb = ImageCms.buildTransform(
        profile,
        ImageCms.createProfile("sRGB"),
        image.mode,
        "RGB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    if image.mode == "RGB" and _changes_little(to_srgb):
        return image
    return ImageCms.applyTransform(image, to_srgb)


def _changes_little(to_srgb: ImageCms.ImageCmsTransform) -> bool:
    """Whether a transform leaves a grid of RGB colours where they are: the profile is sRGB whatever it is called."""
    levels = np.arange(0, 256, 17, dtype=np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(levels.size, -1, 3)
    converted = np.asarray(ImageCms.applyTransform(PIL.Image.fromarray(grid), to_srgb))
    return int(np.abs(converted.astype(np.int16) - grid).max()) <= _SRGB_TOLERANCE


def _png_codes(image: PIL.Image.Image) -> tuple[int, ...] | None:
    """The four bytes of a PNG's cICP chunk, which stands before the pixels; PIL skips it."""
    file = getattr(image, "fp", None)
    if file is None:
        return None
    position = file.tell()
    try:
        file.seek(8)
        for _ in range(_MAX_PNG_CHUNKS):
            if len(head := file.read(8)) < 8:
                return None
            length, kind = struct.unpack(">I4s", head)
            if kind == b"cICP" and length == 4:
                return tuple(file.read(4))
            if kind in (b"IDAT", b"IEND"):
                return None
            file.seek(length + 4, io.SEEK_CUR)
        return None
    finally:
        file.seek(position)


def _avif_codes(image: PIL.Image.Image) -> dict[str, Any] | None:
    """The nclx box of an AVIF file, which libheif parses and PIL does not tell."""
    import pi_heif

    file = getattr(image, "fp", None)
    if file is None:
        return None
    position = file.tell()
    try:
        return pi_heif.open_heif(file).info.get("nclx_profile")
    except (OSError, ValueError, RuntimeError, EOFError, SyntaxError, IndexError):
        return None  # a container that libavif reads and libheif does not
    finally:
        file.seek(position)


def _by_codes(by: str, primaries: int, transfer: int, matrix: int, full_range: int) -> Declared | None:
    if primaries == _UNSPECIFIED and transfer == _UNSPECIFIED:
        return None
    name, xy = _PRIMARIES.get(1 if primaries == _UNSPECIFIED else primaries, ("", ()))
    # Of a picture the video curves mean the screen's own (Chromium reads AVIF so); a PNG with them was cut out of a
    # video, which screens show by BT.1886.
    video = _gamma(2.4) if by.startswith("PNG") else _srgb_curve
    curves = {number: video for number in _VIDEO_CURVES}
    curves |= {_UNSPECIFIED: _srgb_curve, 13: _srgb_curve, 4: _gamma(2.2), 5: _gamma(2.8), 8: _gamma(1.0)}
    curves |= {17: _gamma(2.6), 16: _pq_curve, 18: _hlg_curve}
    if not xy or transfer not in curves or matrix != 0 or full_range != 1:
        return Declared(
            "",
            by,
            None,
            f"{by} declares colours by the codes {primaries}, {transfer}, {matrix} and {full_range}, which are not "
            "converted from; they were taken as sRGB",
        )
    hdr = {16: "PQ", 18: "HLG"}.get(transfer)
    remark = "" if hdr is None else "it is an HDR picture, whose highlights above diffuse white were cut off"
    name = name if hdr is None else f"{name} {hdr}"
    return Declared(name, by, _profile(xy, curves[transfer](_LEVELS)), remark)


def _by_png_chunks(gamma: float | None, chromaticity: tuple[float, ...] | None) -> Declared:
    if gamma is None:
        return Declared("", "PNG cHRM", None, "PNG cHRM does not tell colours without gAMA; they were taken as sRGB")
    by = "PNG gAMA" if chromaticity is None else "PNG cHRM and gAMA"
    xy = _SRGB_XY if chromaticity is None else _pairs(chromaticity)
    # 1/2.2 in five digits is what the PNG standard has writers of sRGB state.
    curve = _srgb_curve if round(gamma * 100_000) == 45_455 else _gamma(1 / gamma) if 0.1 <= gamma <= 10 else None
    return _by_numbers(by, xy, curve and curve(_LEVELS))


def _by_exif(exif: PIL.Image.Exif) -> Declared | None:
    photographic = exif.get_ifd(IFD.Exif)
    space = photographic.get(Tag.ColorSpace, exif.get(Tag.ColorSpace))
    if space == _EXIF_SRGB:
        return None
    interop = exif.get_ifd(IFD.Interop) if IFD.Interop in photographic else {}
    if str(interop.get(1, "")).rstrip("\0 ") == "R03" or space == _EXIF_ADOBE_RGB:
        return Declared("Adobe RGB (1998)", "EXIF", _profile(_ADOBE_XY, _gamma(_ADOBE_GAMMA)(_LEVELS)))
    white, primaries = exif.get(Tag.WhitePoint), exif.get(Tag.PrimaryChromaticities)
    transfer, gamma = exif.get(Tag.TransferFunction), photographic.get(Tag.Gamma)
    if white is not None and primaries is not None:
        xy = _pairs((*_flat(white), *_flat(primaries)))
        # TIFF's default is a gamma of 2.2; programs that state the primaries of sRGB mean its curve too.
        curve = _srgb_curve if xy is not None and np.abs(np.subtract(xy, _SRGB_XY)).max() < 0.005 else _gamma(2.2)
        if isinstance(gamma, Real) and 0.1 <= gamma <= 10:
            curve = _gamma(float(gamma))
        table = curve(_LEVELS) if transfer is None else _table_curve(transfer)
        return _by_numbers("WhitePoint and PrimaryChromaticities", xy, table)
    if transfer is not None:
        return _by_numbers("TransferFunction", _SRGB_XY, _table_curve(transfer))
    if space is None:
        return None
    what = "an uncalibrated colour space" if space == _EXIF_UNCALIBRATED else f"the unknown colour space {space}"
    return Declared("", "EXIF", None, f"EXIF declares {what} and not which; its colours were taken as sRGB")


def _by_numbers(by: str, xy: Chromaticities | None, curve: np.ndarray | None) -> Declared:
    profile_bytes = None if xy is None or curve is None else _profile(xy, curve)
    if profile_bytes is None:
        return Declared("", by, None, f"the colours declared by {by} cannot be; they were taken as sRGB")
    return Declared("a space of its own", by, profile_bytes)


def _flat(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def _pairs(numbers: tuple[Any, ...]) -> Chromaticities | None:
    """White, red, green and blue of eight numbers; None where they are not eight."""
    try:
        values = [float(number) for number in numbers]
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return tuple(zip(values[::2], values[1::2], strict=True)) if len(values) == 8 else None


def _srgb_curve(encoded: np.ndarray) -> np.ndarray:
    return np.where(encoded > 0.04045, ((encoded + 0.055) / 1.055) ** 2.4, encoded / 12.92)


def _gamma(exponent: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda encoded: encoded**exponent


def _pq_curve(encoded: np.ndarray) -> np.ndarray:
    """SMPTE ST 2084, with diffuse white at 1."""
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
    root = encoded ** (1 / m2)
    nits = 10_000 * (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1)
    return np.minimum(nits / _REFERENCE_WHITE_NITS, 1)


def _hlg_curve(encoded: np.ndarray) -> np.ndarray:
    """ITU-R BT.2100 HLG on a screen of 1000 nits, channel by channel, with diffuse white at 1."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(encoded <= 0.5, encoded**2 / 3, (np.exp((encoded - c) / a) + b) / 12)
    return np.minimum(1000 * scene**1.2 / _REFERENCE_WHITE_NITS, 1)


def _table_curve(table: Any) -> np.ndarray | None:
    """TIFF's TransferFunction, one table or three of 2^bits entries, at the 256 levels: (1 or 3, 256) in [0, 1]."""
    try:
        values = np.asarray(_flat(table), dtype=np.float64)
    except (TypeError, ValueError):
        return None
    for channels in (1, 3):
        entries = values.size // channels
        if entries * channels == values.size and entries in (256, 65_536):
            curves = values.reshape(channels, entries)[:, np.rint(_LEVELS * (entries - 1)).astype(int)] / 65_535
            return curves if (np.diff(curves) >= 0).all() and curves[:, -1].all() else None
    return None


def _profile(xy: Chromaticities, curve: np.ndarray) -> bytes | None:
    """An ICC profile (version 2, matrix and tables) of an RGB space, None where the chromaticities span none.

    ``curve`` is linear light of the 256 levels in [0, 1], (256,) or (3, 256).
    """
    values = np.array(xy, dtype=np.float64)
    if not np.isfinite(values).all() or (values[:, 1] < 1e-4).any() or np.abs(values).max() > 2:
        return None
    xyz = np.stack([values[:, 0], values[:, 1], 1 - values.sum(axis=1)], axis=1) / values[:, 1:]
    primaries = xyz[1:].T
    if abs(np.linalg.det(primaries)) < 1e-6:
        return None
    amounts = np.linalg.solve(primaries, xyz[0])
    if (amounts <= 0).any():
        return None
    adapt = np.linalg.solve(_BRADFORD, np.diag(_BRADFORD @ _D50_XYZ / (_BRADFORD @ xyz[0])) @ _BRADFORD)
    colorants = adapt @ (primaries * amounts)
    if not (np.abs(colorants) < 32_000).all():
        return None

    def number(value: float) -> bytes:
        return struct.pack(">i", round(value * 65_536))

    def position(vector: np.ndarray) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(map(number, vector))

    curves = np.rint(np.broadcast_to(curve, (3, 256)) * 65_535).astype(">u2")
    text = b"declared colours\0"
    tags = {b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(78)}
    tags |= {b"cprt": b"text\0\0\0\0none\0", b"wtpt": position(_D50_XYZ)}
    tags |= {name + b"XYZ": position(column) for name, column in zip((b"r", b"g", b"b"), colorants.T, strict=True)}
    tags |= {
        name + b"TRC": b"curv\0\0\0\0" + struct.pack(">I", 256) + table.tobytes()
        for name, table in zip((b"r", b"g", b"b"), curves, strict=True)
    }
    directory, body = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        directory += name + struct.pack(">II", start + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    header = struct.pack(">I4sI", start + len(body), b"\0\0\0\0", 0x02400000) + b"mntrRGB XYZ " + bytes(12) + b"acsp"
    return header.ljust(68, b"\0") + b"".join(map(number, _D50_XYZ)) + bytes(48) + directory + body
