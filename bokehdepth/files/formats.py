"""Which picture of which file is the photo: named formats alone, the file's primary picture, no camera RAW.

Nothing here decodes pixels or counts pictures, so the cost does not grow with what a file claims to hold.
"""

from __future__ import annotations

import io
import mmap
import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import PIL.Image
from PIL.ExifTags import Base as Tag

from ..errors import InputError

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

# TIFF: sizes in bytes of the types of values, and how whole numbers among them are read.
_TYPE_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_TYPE_CODES = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
_RAW_TAGS = (Tag.DNGVersion, Tag.CFARepeatPatternDim, 33_422)  # the last: CFAPattern of TIFF/EP
_RAW_PHOTOMETRIC = (32_803, 34_892)  # colour filter array, linear RAW
_RAW_COMPRESSIONS = (32_767, 32_769, 32_770, 32_772, 34_713, 65_535)  # ARW, Epson, SRW (twice), NEF, PEF
_NOT_THE_PHOTO_BITS = 0b11101  # reduced, mask, depth, enhanced; bit 1 marks a page of several
_REDUCED = 2  # of the old SubfileType

_MAX_PAGES = 16
"""Pages of a TIFF that are looked at for its full-size picture; no program writes more small ones before it."""

_MAX_SUB_IFDS = 8
_THUMBNAIL_PX = 512
"""A first page with a longer side is the photo; a smaller one may be a thumbnail that is not marked as one."""


# What a picture is read in: PIL handles each piece in Python, libjpeg goes over all pixels for each scan.
_MAX_READS = 300_000
_TOO_MANY = "it is of more pieces than a picture has"
_MAX_SCANS = 100
_MAX_COMMENT_BYTES = 2**20  # PIL copies a GIF's comment for each 255 bytes of it
_JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")  # those that have a length, and the end
_JPEG_END, _JPEG_SCAN = 0xD9, 0xDA


class PictureFile(io.BufferedReader):
    """A file that is read a number of times at most, as no picture needs more; then ValueError."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self._reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        """Read as any file."""
        self._reads += 1
        if self._reads > _MAX_READS:
            raise ValueError(_TOO_MANY)
        return super().read(size)


@dataclass(frozen=True)
class _Directory:
    """One image file directory of a TIFF: the first whole numbers of each tag, and where the next one stands."""

    numbers: dict[int, tuple[int, ...]]
    tags: frozenset[int]
    next_at: int

    def first(self, tag: int) -> int:
        return next(iter(self.numbers.get(tag, ())), 0)

    @property
    def is_raw(self) -> bool:
        return bool(
            self.tags & set(_RAW_TAGS)
            or self.first(Tag.PhotometricInterpretation) in _RAW_PHOTOMETRIC
            or self.first(Tag.Compression) in _RAW_COMPRESSIONS
        )

    @property
    def is_reduced(self) -> bool:
        marked = self.first(Tag.NewSubfileType) & _NOT_THE_PHOTO_BITS
        return bool(marked) or self.first(Tag.SubfileType) == _REDUCED

    @property
    def size_px(self) -> tuple[int, int]:
        return self.first(Tag.ImageWidth), self.first(Tag.ImageLength)


def open_primary(file: PictureFile, path: Path, label: str) -> tuple[PIL.Image.Image, list[str]]:
    """Open a file's primary picture, without decoding it.

    Args:
        file: an existing one, which must stay open while the picture is used.
        path: of the file.
        label: what to call it in a message.

    Returns:
        The picture as PIL opens it (a HEIC's primary item, a TIFF's full-size page, else the first frame), to be
        closed by the caller, and at most one note: which picture it is, where there are several.

    Raises:
        InputError: camera RAW, a format that is not read, or a TIFF of reduced pictures alone.
        Exception: what PIL and pi_heif raise on damaged files, and on the beginning of no known format.
    """
    page, notes = 0, []
    head = file.read(32)
    raw = next((name for pattern, name in _RAW_SIGNATURES if pattern.match(head)), None)
    if raw is None and head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        pages = _pages(file, head)
        raw = _raw_kind(file, head, pages, path.suffix)
        if raw is None:
            page, notes = _full_size_page(pages, label)
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
        is_gif = head.startswith((b"GIF87a", b"GIF89a"))
        if head.startswith(b"\xff\xd8\xff"):
            _check_scans(file, label)
        elif is_gif and _has_second_frame(file):
            notes = ["the first of several frames was taken"]
        file.seek(0)
        image = PIL.Image.open(file, formats=_PIL_FORMATS)
    try:
        if page:
            image.seek(page)
        elif image.format not in ("TIFF", "GIF") and getattr(image, "is_animated", False):
            which = "primary one of several pictures" if image.format == "HEIF" else "first of several frames"
            notes = [f"the {which} was taken"]
    except BaseException:
        image.close()
        raise
    return image, notes


def _check_scans(file: BinaryIO, label: str) -> None:
    """Refuse a JPEG of many scans, which takes as many times as long as one of its size and bytes."""
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        at = pieces = scans = 0
        while marker := _JPEG_MARKER.search(content, at):
            at, pieces = marker.end(), pieces + 1
            if pieces > _MAX_READS:
                raise ValueError(_TOO_MANY)
            kind, length = content[at - 1], content[at : at + 2]
            if kind == _JPEG_END or len(length) < 2:
                return
            at += max(int.from_bytes(length, "big"), 2)
            scans += kind == _JPEG_SCAN
            if scans > _MAX_SCANS:
                raise InputError(f"{label} has more than {_MAX_SCANS} scans; save it as a plain JPEG.")


def _has_second_frame(file: BinaryIO) -> bool:
    """Whether a GIF has another frame after its first, in as few pieces and comments as one needs."""
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        at, frames, pieces, comment_bytes = 13, 0, 0, 0
        at += 3 * 2 ** (content[10] % 8 + 1) if len(content) > 10 and content[10] & 128 else 0
        while at + 10 < len(content) and content[at] in b"!,":
            is_comment = content[at : at + 2] == b"!\xfe"
            if content[at] == b","[0]:
                frames += 1
                at += 11 + (3 * 2 ** (content[at + 9] % 8 + 1) if content[at + 9] & 128 else 0)
            else:
                at += 2
            if frames == 2:
                return True
            while at < len(content) and content[at]:
                pieces += 1
                comment_bytes += is_comment * content[at]
                at += 1 + content[at]
                if pieces > _MAX_READS or comment_bytes > _MAX_COMMENT_BYTES:
                    raise ValueError(_TOO_MANY)
            pieces += 1
            at += 1
    return False


def _brands(file: BinaryIO) -> frozenset[bytes]:
    """Brands of an ISO base media file (HEIC, AVIF, video), the major one and those it is compatible with."""
    file.seek(0)
    size, kind = struct.unpack(">I4s", file.read(8).ljust(8, b"\0"))
    if kind != b"ftyp":
        return frozenset()
    content = file.read(min(max(size - 8, 0), 4 * _MAX_BRANDS))
    found = [content[start : start + 4] for start in range(0, len(content), 4)]
    return frozenset(found[:1] + found[2:])  # between them stands a version number


def _directory(file: BinaryIO, head: bytes, at: int) -> _Directory:
    """Read one directory of a TIFF: its entries, and of their values no more than a few numbers.

    PIL reads every value of a directory that it opens, and nothing keeps many of them from naming the same bytes; so a
    directory with more of them than its file holds is damaged.
    """
    order, is_big = "<" if head[:2] == b"II" else ">", 43 in head[2:4]
    count_code, entry_code, link_code, inline = ("Q", "HHQ8s", "Q", 8) if is_big else ("H", "HHI4s", "I", 4)

    def unpack(code: str, content: bytes) -> tuple:
        return struct.unpack_from(order + code, content)

    file_bytes = os.fstat(file.fileno()).st_size
    file.seek(at)
    count = unpack(count_code, file.read(struct.calcsize("=" + count_code)))[0]
    step = struct.calcsize("=" + entry_code)
    if count * step > file_bytes:
        raise ValueError("a directory with more entries than its file holds")
    entries = file.read(count * step)
    next_at = unpack(link_code, file.read(inline))[0]
    numbers: dict[int, tuple[int, ...]] = {}
    tags, value_bytes = set(), 0
    for start in range(0, len(entries), step):
        tag, kind, amount, value = unpack(entry_code, entries[start : start + step])
        tags.add(tag)
        size = _TYPE_SIZES.get(kind, 0) * amount
        value_bytes += size
        if kind in _TYPE_CODES:
            wanted = min(amount, _MAX_SUB_IFDS)
            code = f"{wanted}{_TYPE_CODES[kind]}"
            if size > inline and tag == Tag.SubIFDs:
                file.seek(unpack(link_code, value)[0])
                value = file.read(struct.calcsize("=" + code))
            if size <= inline or tag == Tag.SubIFDs:
                numbers[tag] = unpack(code, value)
    if value_bytes > 2 * file_bytes + 65_536:
        raise ValueError("a directory with more values than its file holds")
    return _Directory(numbers, frozenset(tags), next_at)


def _pages(file: BinaryIO, head: bytes) -> list[_Directory]:
    """The first directories of a TIFF's chain of pages, up to the first that is damaged."""
    at = struct.unpack_from("<Q" if head[:2] == b"II" else ">Q", head, 8)[0] if 43 in head[2:4] else None
    if at is None:
        at = struct.unpack_from("<I" if head[:2] == b"II" else ">I", head, 4)[0]
    pages: list[_Directory] = []
    while at and len(pages) < _MAX_PAGES:
        try:
            pages.append(_directory(file, head, at))
        except (ValueError, OverflowError, OSError, struct.error):
            if pages:
                break
            raise
        at = pages[-1].next_at
    return pages


def _raw_kind(file: BinaryIO, head: bytes, pages: list[_Directory], suffix: str) -> str | None:
    """Name of a camera RAW format that is a TIFF by structure, None for a plain TIFF."""
    directories = pages[:1]
    for at in pages[0].numbers.get(Tag.SubIFDs, ()) if pages else ():
        try:
            directories.append(_directory(file, head, at))
        except (ValueError, OverflowError, OSError, struct.error):
            break
    # Some makers' RAW has no tag of its own: the structure of a TIFF under the name of a RAW is one.
    if suffix.lower() in _RAW_SUFFIXES:
        return suffix[1:].upper()
    if not any(directory.is_raw for directory in directories):
        return None
    return "DNG" if Tag.DNGVersion in pages[0].tags else "a TIFF with sensor data"


def _full_size_page(pages: list[_Directory], label: str) -> tuple[int, list[str]]:
    """Index of a TIFF's full-size page, and a note if it is one of several."""
    photos = [index for index, page in enumerate(pages) if not page.is_reduced]
    if pages and not photos:
        raise InputError(
            f"{label} has only reduced pictures among its first {_MAX_PAGES} pages; save it as a TIFF whose first "
            "page is the photo."
        )
    chosen = photos[0] if photos else 0
    width_px, height_px = pages[chosen].size_px if photos else (0, 0)
    if 0 < max(width_px, height_px) <= _THUMBNAIL_PX:
        for index in photos[1:]:
            other_width, other_height = pages[index].size_px
            is_same_shape = abs(other_width * height_px - other_height * width_px) <= 0.02 * other_height * width_px
            if other_width >= max(2 * width_px, pages[chosen].size_px[0] + 1) and is_same_shape:
                chosen = index
    if chosen:
        return chosen, [f"page {chosen + 1} of the TIFF was taken, its full-size picture"]
    return 0, ["the first of several pages was taken"] if len(photos) > 1 else []
