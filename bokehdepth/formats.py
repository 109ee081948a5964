"""Which picture of which file is the photo: named formats alone, the file's primary picture, no camera RAW.

Nothing here decodes pixels or counts pictures, so the cost does not grow with what a file claims to hold.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import BinaryIO

import PIL.Image
from PIL import TiffImagePlugin

from .errors import InputError

FORMATS = "JPEG, PNG, WebP, TIFF, AVIF, HEIC, GIF or BMP"
"""The formats that are read, in words."""

PICTURE_SUFFIXES = frozenset(
    ".avif .bmp .gif .heic .heif .hif .jfif .jpe .jpeg .jpg .mpo .png .tif .tiff .webp".split()
)
"""Endings of the names of such files; what is in a file decides, not its name."""

# PIL's own names; its JPEG reader opens MPO.
_PIL_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "AVIF", "GIF", "BMP")
_HEIF_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"))
_AVIF_BRANDS = frozenset((b"avif", b"avis"))
_MAX_BRANDS = 64

# By what stands at the start of the file.
_RAW_SIGNATURES = (
    (re.compile(rb"FUJIFILMCCD-RAW"), "RAF"),
    (re.compile(rb"II(RO|RS)|MMOR"), "ORF"),
    (re.compile(rb"IIU\0"), "RW2"),
    (re.compile(rb"(II\*\0|MM\0\*).{4}CR", re.DOTALL), "CR2"),
    (re.compile(rb"II\x1a\0\0\0HEAPCCDR"), "CRW"),
    (re.compile(rb".{4}ftypcrx ", re.DOTALL), "CR3"),
    (re.compile(rb"FOVb"), "X3F"),
    (re.compile(rb"\0MRM"), "MRW"),
)
_RAW_SUFFIXES = frozenset(
    ".3fr .arw .cr2 .cr3 .crw .dcr .dng .erf .fff .gpr .iiq .kdc .mef .mos .mrw .nef .nrw .orf .pef .raf .raw .rw2 "
    ".rwl .sr2 .srf .srw .x3f".split()
)
_OTHER_SIGNATURES = (
    (re.compile(rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51"), "JPEG 2000"),
    (re.compile(rb"\xff\x0a|\0\0\0\x0cJXL "), "JPEG XL"),
    (re.compile(rb"8BPS"), "Photoshop"),
    (re.compile(rb"v/1\x01"), "OpenEXR"),
    (re.compile(rb"%PDF|%!PS"), "PDF or PostScript"),
    (re.compile(rb"P[1-7FfH]\s"), "PNM or PFM"),
    (re.compile(rb"#\?(RADIANCE|RGBE)"), "Radiance HDR"),
    (re.compile(rb"\0\0\x01\0"), "Windows icon"),
    (re.compile(rb"\s*(<\?xml|<svg|<!doctype|<html)", re.IGNORECASE), "SVG, HTML or XML"),
    (re.compile(rb".{4}ftyp|\x1aE\xdf\xa3|RIFF.{4}AVI ", re.DOTALL), "video, or a container of another kind"),
    (re.compile(rb"\x93NUMPY|PK\x03\x04"), "NumPy or ZIP"),
)

# TIFF tags.
_TAG_NEW_SUBFILE_TYPE, _TAG_SUBFILE_TYPE = 254, 255
_TAG_COMPRESSION, _TAG_PHOTOMETRIC, _TAG_SUB_IFDS = 259, 262, 330
_RAW_TAGS = (50_706, 33_421, 33_422)  # DNGVersion, CFARepeatPatternDim, CFAPattern
_RAW_PHOTOMETRIC = (32_803, 34_892)  # colour filter array, linear RAW
_RAW_COMPRESSIONS = (32_767, 32_769, 32_770, 32_772, 34_713, 65_535)  # ARW, Epson, SRW (twice), NEF, PEF
_NOT_THE_PHOTO_BITS = 0b11101  # reduced, mask, depth, enhanced; bit 1 marks a page of several
_REDUCED = 2  # of the old SubfileType

_MAX_PAGES = 16
"""Pages of a TIFF that are looked at for its full-size picture; no program writes more small ones before it."""

_MAX_SUB_IFDS = 8
_UNREADABLE = (OSError, ValueError, SyntaxError, TypeError, IndexError, KeyError, OverflowError, struct.error)
_THUMBNAIL_PX = 512
"""A first page with a longer side is the photo; a smaller one may be a thumbnail that is not marked as one."""


def open_primary(path: Path, label: str) -> tuple[PIL.Image.Image, list[str]]:
    """Open a file's primary picture, without decoding it.

    Args:
        path: an existing file.
        label: what to call it in a message.

    Returns:
        The picture as PIL opens it (a HEIC's primary item, a TIFF's first full-size page, else the first frame), to be
        closed by the caller, and notes: which picture it is, where there are several.

    Raises:
        InputError: camera RAW, or a format that is not read.
        PIL.UnidentifiedImageError: the beginning is that of no known format.
        Exception: what PIL and pi_heif raise on damaged files.
    """
    with path.open("rb") as file:
        head = file.read(32)
        raw = next((name for pattern, name in _RAW_SIGNATURES if pattern.match(head)), None)
        if raw is None and _is_tiff(head):
            raw = _raw_by_tags(file, path.suffix)
        brands = _brands(file)
    if raw is not None:
        raise InputError(f"{label} is a camera RAW file ({raw}): develop it first, and save it as JPEG or TIFF.")
    if brands & _HEIF_BRANDS and not brands & _AVIF_BRANDS:
        import pi_heif

        image = pi_heif.HeifImageFile(path)
    else:
        other = next((name for pattern, name in _OTHER_SIGNATURES if pattern.match(head)), None)
        if other is not None and not brands & _AVIF_BRANDS:
            raise InputError(f"{label} must be a {FORMATS}, got {other}.")
        image = PIL.Image.open(path, formats=_PIL_FORMATS)
    try:
        return image, primary_notes(image, label, from_file=True)
    except BaseException:
        image.close()
        raise


def primary_notes(image: PIL.Image.Image, label: str, *, from_file: bool) -> list[str]:
    """Bring a freshly opened TIFF to its full-size page, and say which picture of several one has.

    Args:
        image: any PIL image.
        label: what to call it in a message.
        from_file: whether the choice of the picture is ours; an image passed in memory stays at its frame.

    Returns:
        At most one sentence.

    Raises:
        InputError: a TIFF has nothing but reduced pictures in its chain of pages.
    """
    if not from_file:
        return ["one of several frames was taken"] if getattr(image, "is_animated", False) else []
    if image.format == "TIFF":
        page, several = _full_size_page(image, label)
        image.seek(page)
        if page:
            return [f"page {page + 1} of the TIFF was taken, its full-size picture"]
        return ["the first of several pages was taken"] if several else []
    if not getattr(image, "is_animated", False):
        return []
    if image.format == "HEIF":
        return ["the primary one of several pictures was taken"]
    return ["the first of several frames was taken"]


def _is_tiff(head: bytes) -> bool:
    return head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def _brands(file: BinaryIO) -> frozenset[bytes]:
    """Brands of an ISO base media file (HEIC, AVIF, video), the major one and those it is compatible with."""
    file.seek(0)
    size, kind = struct.unpack(">I4s", file.read(8).ljust(8, b"\0"))
    if kind != b"ftyp":
        return frozenset()
    content = file.read(min(max(size - 8, 0), 4 * _MAX_BRANDS))
    found = [content[start : start + 4] for start in range(0, len(content), 4)]
    return frozenset(found[:1] + found[2:])  # between them stands a version number


def _raw_by_tags(file: BinaryIO, suffix: str) -> str | None:
    """Name of a camera RAW format that is a TIFF by structure, None for a plain TIFF."""
    file.seek(0)
    header = file.read(8)
    header += file.read(8) if header[2] == 43 else b""
    try:
        first = TiffImagePlugin.ImageFileDirectory_v2(header)
        file.seek(first.next)
        first.load(file)
        offsets = first.get(_TAG_SUB_IFDS, ())
        directories = [first]
        for offset in (offsets if isinstance(offsets, tuple) else (offsets,))[:_MAX_SUB_IFDS]:
            directory = TiffImagePlugin.ImageFileDirectory_v2(header)
            file.seek(offset)
            directory.load(file)
            directories.append(directory)
    except _UNREADABLE:
        return None  # damaged: opening it says so
    is_raw = any(
        any(tag in directory for tag in _RAW_TAGS)
        or directory.get(_TAG_PHOTOMETRIC) in _RAW_PHOTOMETRIC
        or directory.get(_TAG_COMPRESSION) in _RAW_COMPRESSIONS
        for directory in directories
    )
    # Some makers' RAW has no tag of its own: the structure of a TIFF under the name of a RAW is one.
    if not is_raw and suffix.lower() not in _RAW_SUFFIXES:
        return None
    named = suffix.lower() in _RAW_SUFFIXES
    return suffix[1:].upper() if named else "DNG" if _RAW_TAGS[0] in first else "a TIFF with sensor data"


def _full_size_page(image: PIL.Image.Image, label: str) -> tuple[int, bool]:
    """Index of a TIFF's full-size page, and whether it is one of several."""
    photos: list[tuple[int, int, int]] = []
    page = 0
    while page < _MAX_PAGES:
        try:
            image.seek(page)
        except (EOFError, *_UNREADABLE):
            break
        tags = image.tag_v2
        marks = tags.get(_TAG_NEW_SUBFILE_TYPE, 0)
        is_photo = not (isinstance(marks, int) and marks & _NOT_THE_PHOTO_BITS)
        if is_photo and tags.get(_TAG_SUBFILE_TYPE) != _REDUCED:
            photos.append((page, *image.size))
            # Most often the first page tells it; the next one is looked at for the note alone.
            if max(photos[0][1:]) > _THUMBNAIL_PX and (len(photos) == 2 or page > photos[0][0]):
                break
        elif photos and max(photos[0][1:]) > _THUMBNAIL_PX:
            break
        page += 1
    if not photos:
        raise InputError(
            f"{label} has only reduced pictures among its first {_MAX_PAGES} pages; save it as a TIFF whose first "
            "page is the photo."
        )
    first, width_px, height_px = photos[0]
    if max(width_px, height_px) <= _THUMBNAIL_PX:
        larger = [
            (other_width, index)
            for index, other_width, other_height in photos[1:]
            if other_width >= 2 * width_px and abs(other_width * height_px / (other_height * width_px) - 1) < 0.02
        ]
        if larger:
            return max(larger, key=lambda entry: (entry[0], -entry[1]))[1], True
    return first, len(photos) > 1
