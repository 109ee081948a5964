"""Photos made to harm, a table of makers: what the file is, its bytes, and what the page has to say of it."""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import piexif
import PIL.Image

SCRIPT = b"<script>alert(1)</script>"


def picture(size_px: tuple[int, int] = (96, 64)) -> PIL.Image.Image:
    rng = np.random.default_rng(0)
    return PIL.Image.fromarray(rng.integers(0, 256, (size_px[1], size_px[0], 3), dtype=np.uint8))


def saved(kind: str, image: PIL.Image.Image | None = None, **options: object) -> bytes:
    stream = io.BytesIO()
    (image or picture()).save(stream, format=kind, **options)
    return stream.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *more: bytes, rows: bytes | None = None, bits: int = 8, colour: int = 0) -> bytes:
    """A grey PNG of zeros, or one whose rows are missing; `more` are chunks before its pixels."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    if rows is None:
        rows = zlib.compress(bytes((1 + -(-width * bits // 8)) * height), 9)
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def tiff(
    entries: dict[int, tuple[int, int, int]], pages: int = 1, link: int | None = None, tail: bytes = b""
) -> bytes:
    """Directories one after the other, all with the same entries: tag to (type, count, value)."""
    size = 2 + 12 * len(entries) + 4
    one = struct.pack("<H", len(entries))
    one += b"".join(struct.pack("<HHII", tag, *value) for tag, value in sorted(entries.items()))
    nexts = [8 + (number + 1) * size for number in range(pages - 1)] + [0 if link is None else link]
    return b"II*\0\x08\0\0\0" + b"".join(one + struct.pack("<I", at) for at in nexts) + tail


def grey_tiff(width: int, height: int, compression: int = 1, data: bytes = b"", **rest: int) -> bytes:
    entries = {256: width, 257: height, 258: 8, 259: compression, 262: 1, 277: 1, 278: height, 279: len(data)}
    start = 8 + 2 + 12 * (len(entries) + 1) + 4
    return tiff({tag: (4, 1, value) for tag, value in (entries | {273: start}).items()}, tail=data, **rest)


def jpeg_scans(count: int, size_px: tuple[int, int] = (2000, 2000)) -> bytes:
    """A progressive JPEG that says the same refinement of its picture again and again."""
    whole = saved("JPEG", PIL.Image.new("L", size_px, 90), progressive=True)
    last = whole.rindex(b"\xff\xda")
    return whole[:last] + whole[last:-2] * count + b"\xff\xd9"


def gif_frames(count: int) -> bytes:
    whole = saved("GIF", picture().convert("P"))
    one = whole.index(b",", 13 + 768)
    return whole[:one] + whole[one:-1] + b",\0\0\0\0\1\0\1\0\0\2\2L\1\0" * count + b";"


def boxes(brand: bytes, *inner: bytes) -> bytes:
    head = struct.pack(">I", 24) + b"ftyp" + brand + bytes(4) + b"mif1" + brand
    return head + b"".join(struct.pack(">I", 8 + len(data)) + data for data in inner)


def changed(whole: bytes, **places: bytes) -> bytes:
    data = bytearray(whole)
    for at, value in places.items():
        data[int(at[1:]) : int(at[1:]) + len(value)] = value
    return bytes(data)


def jpeg_with(*segments: bytes) -> bytes:
    whole = saved("JPEG")
    return whole[:2] + b"".join([s[:2] + struct.pack(">H", len(s)) + s[2:] for s in segments]) + whole[2:]


def webp_claim() -> bytes:
    return b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8L" + struct.pack("<I", 10) + b"\x2f" + b"\xff" * 4 + bytes(5)


def exif_loop() -> bytes:
    entry = struct.pack("<HHII", 0x8769, 4, 1, 8)
    return b"\xff\xe1Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 1) + entry + struct.pack("<I", 8)


def exif_claim() -> bytes:
    entry = struct.pack("<HHII", 0x9286, 7, 2**31, 8)
    return b"\xff\xe1Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 1) + entry + bytes(4)


def scripts() -> bytes:
    zeroth = dict.fromkeys((piexif.ImageIFD.Make, piexif.ImageIFD.ImageDescription, piexif.ImageIFD.Artist), SCRIPT)
    exif = piexif.dump({"0th": zeroth, "Exif": {piexif.ExifIFD.LensModel: b"\x1b[31m\r\nSet-Cookie: a=b" + SCRIPT}})
    return saved("JPEG", exif=exif) + b"<html>" + SCRIPT


def laughs() -> bytes:
    entities = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 10))
    xml = f'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a0 "ha">{entities}]><x:xmpmeta>&a9;</x:xmpmeta>'
    return saved("JPEG", xmp=xml.encode())


def many_pages() -> bytes:
    pages, tags = 100_000, {256: 96, 257: 64, 258: 8, 259: 1, 262: 1, 277: 1, 278: 64, 279: 6144}
    start = 8 + pages * (2 + 12 * 9 + 4)
    return tiff({tag: (4, 1, value) for tag, value in (tags | {273: start}).items()}, pages, tail=bytes(6144))


def gif_with(blocks: bytes) -> bytes:
    whole = saved("GIF", picture().convert("P"))
    one = whole.index(b",", 13 + 768)
    return whole[:one] + blocks + whole[one:]


Makers = dict[str, tuple[str | None, Callable[[], bytes]]]
"""Name to (words of the refusal, or None where the photo is read as what it is, maker of the bytes)."""

MANY, ASPECT, NONE = "16,000,000", "times the other", "must be a JPEG"
DAMAGED, PIECES = "damaged or cut short", "more pieces than a picture has"

PHOTOS: Makers = {
    "strip.png": (ASPECT, lambda: png(480_000, 32)),
    "wide.png": (ASPECT, lambda: png(4000, 32)),
    "high.png": (ASPECT, lambda: png(32, 4000)),
    "just_too_wide.png": (ASPECT, lambda: png(8001, 1000)),
    "claims_60000.png": ("pixels", lambda: png(60_000, 60_000, rows=b"")),
    "claims_line.png": ("pixels", lambda: png(2**31 - 1, 1, rows=b"")),
    "claims_none.png": ("", lambda: png(0, 0, rows=b"")),
    "claims_25_mp.png": (MANY, lambda: png(5000, 5000, rows=b"")),
    "bomb.png": (MANY, lambda: png(40_000, 40_000, bits=1)),
    "short.png": (DAMAGED, lambda: png(3000, 3000, rows=zlib.compress(bytes(9000)))),
    "tiny.png": ("at least 32", lambda: png(8, 8)),
    "text_bomb.png": (DAMAGED, lambda: png(96, 64, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**27), 9)))),
    "profile_bomb.png": ("", lambda: png(96, 64, chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(2**27), 9)))),
    "animated.png": (None, lambda: png(96, 64, chunk(b"acTL", struct.pack(">II", 10**6, 0)))),
    "xmp_bomb.png": (
        DAMAGED,
        lambda: png(96, 64, chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(2**27)))),
    ),
    "exif.png": (None, lambda: png(96, 64, chunk(b"eXIf", b"II*\0\xff\xff\xff\x7f"))),
    "pages.tif": (None, many_pages),
    "loop.tif": (None, lambda: grey_tiff(96, 64, data=bytes(6144), link=8)),
    "shared_values.tif": (
        DAMAGED,
        lambda: tiff({tag: (7, 10**6, 8) for tag in range(1000, 6000)}, tail=bytes(10**6)),
    ),
    "claims.tif": ("pixels", lambda: grey_tiff(60_000, 60_000)),
    "bomb.tif": (MANY, lambda: grey_tiff(8000, 8000, 8, zlib.compress(bytes(8000 * 8000), 9))),
    "lzw.tif": (DAMAGED, lambda: grey_tiff(3000, 3000, 5, bytes(100))),
    "ccitt.tif": (DAMAGED, lambda: grey_tiff(3000, 3000, 4, b"\xff" * 5000)),
    "frames.gif": (None, lambda: gif_frames(2_000_000)),
    "canvas.gif": ("pixels", lambda: changed(saved("GIF", picture().convert("P")), _6=b"\xff\xff\xff\xff")),
    "scans.jpg": ("scans", lambda: jpeg_scans(2000)),
    "claims.jpg": (
        "pixels",
        lambda: (d := saved("JPEG")).replace(d[(i := d.index(b"\xff\xc0")) + 5 : i + 9], b"\xff" * 4, 1),
    ),
    "segments.jpg": (PIECES, lambda: jpeg_with(*[b"\xff\xe5"] * 5_000_000)),
    "fill.jpg": (PIECES, lambda: (d := saved("JPEG"))[:2] + b"\xff" * 30_000_000 + d[2:]),
    "chunks.png": (PIECES, lambda: png(96, 64, *[chunk(b"abCd", b"")] * 2_500_000)),
    "rows.png": (PIECES, lambda: png(96, 64)[:-12] + chunk(b"IDAT", b"") * 2_500_000 + chunk(b"IEND", b"")),
    "comment.gif": (PIECES, lambda: gif_with(b"!\xfe" + (b"\xff" + b"a" * 255) * 120_000 + b"\0")),
    "blocks.gif": (PIECES, lambda: gif_with(b"!\xfe" + b"\1a" * 15_000_000 + b"\0")),
    "extensions.gif": (PIECES, lambda: gif_with(b"!\xf9\4\0\0\0\0\0" * 3_500_000)),
    "late_comment.gif": (
        PIECES,
        lambda: saved("GIF", picture().convert("P"))[:-1] + b"!\xfe" + (b"\xff" + b"a" * 255) * 120_000 + b"\0;",
    ),
    "cut.jpg": (DAMAGED, lambda: saved("JPEG")[:2000]),
    "comments.jpg": (None, lambda: jpeg_with(*[b"\xff\xfe" + bytes(60_000)] * 400)),
    "profiles.jpg": (None, lambda: jpeg_with(*[b"\xff\xe2ICC_PROFILE\0\x01\xff" + bytes(60_000)] * 255)),
    "exif_loop.jpg": (None, lambda: jpeg_with(exif_loop())),
    "exif_claim.jpg": (None, lambda: jpeg_with(exif_claim())),
    "exif_many.jpg": (None, lambda: jpeg_with(*[exif_claim()] * 300)),
    "laughs.jpg": (None, laughs),
    "scripts.jpg": (None, scripts),
    "many.mpo": (
        None,
        lambda: jpeg_with(b"\xff\xe2MPF\0II*\0\x08\0\0\0\1\0" + struct.pack("<HHII", 0xB001, 4, 1, 2**31) + bytes(4)),
    ),
    "claims.webp": ("", webp_claim),
    "frames.webp": (None, lambda: saved("WEBP", save_all=True, append_images=[picture((96, 64))] * 300)),
    "cut.avif": ("", lambda: saved("AVIF")[:300]),
    "empty.avif": ("", lambda: boxes(b"avif", b"meta" + bytes(40))),
    "empty.heic": ("", lambda: boxes(b"heic", b"meta" + bytes(40))),
    "nested.heic": ("", lambda: boxes(b"heic", b"meta" + bytes(4) + (struct.pack(">I", 2**31) + b"meta") * 5000)),
    "rows.bmp": ("", lambda: changed(saved("BMP"), _18=struct.pack("<ii", 30_000, -30_000))),
    "rle.bmp": ("", lambda: changed(saved("BMP"), _18=struct.pack("<ii", 3000, 3000), _28=b"\x08\0\x01\0\0\0")),
    "a.svg": (NONE, lambda: b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>'),
    "entities.jpg": (
        NONE,
        lambda: b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>',
    ),
    "page.jpg": (NONE, lambda: b"<html>" + SCRIPT),
    "shell.jpg": (NONE, lambda: b"#!/bin/sh\nrm -rf /"),
    "opcodes.jpg": (NONE, lambda: b"\x80\x04cos\nsystem\n(S'id'\ntR."),
    "postscript.jpg": (NONE, lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n" + b"a\n" * 10**6),
    "gzip.jpg": (NONE, lambda: gzip.compress(bytes(10**7))),
    "zip.jpg": (NONE, lambda: b"PK\x03\x04" + bytes(60)),
    "video.jpg": (NONE, lambda: b"\0\0\0\x18ftypmp42" + bytes(40)),
    "text.jpg": (NONE, lambda: b"P3 96 64 255\n" + b"9 " * 10**6),
    "layers.jpg": (NONE, lambda: b"8BPS\0\1" + bytes(30)),
    "icon.jpg": (NONE, lambda: b"\0\0\1\0\xff\xff" + bytes(10**5)),
    "jpeg2000.jpg": (NONE, lambda: saved("JPEG2000")),
    "camera.nef": ("camera RAW", lambda: grey_tiff(96, 64, data=bytes(6144))),
    "empty.jpg": ("", lambda: b""),
    "zeros.jpg": (NONE, lambda: bytes(10**6)),
    "<img src=x onerror=alert(1)>.jpg": (NONE, lambda: b"no"),
    "..%2f..%2fetc%2fpasswd.jpg": (NONE, lambda: b"no"),
    "\x1b[31mred; rm -rf ~ #.jpg": (NONE, lambda: b"no"),
}
