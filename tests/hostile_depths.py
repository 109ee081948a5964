"""Depth files made to harm, a table of makers beside the archives of `test_depth_maps`."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

import numpy as np
import PIL.Image
from hostile_photos import grey_tiff, png, saved


def npy(shape: object, descr: object = "<f4", data: bytes = b"", header: str | None = None) -> bytes:
    text = header or repr({"descr": descr, "fortran_order": False, "shape": shape})
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(text) + 1) + text.encode() + b"\n" + data


def pfm(width: object, height: object, scale: object = -1, data: bytes = b"") -> bytes:
    return f"Pf\n{width} {height}\n{scale}\n".encode() + data


def grey16(size_px: tuple[int, int], *more: bytes) -> bytes:
    rows = zlib.compress((b"\0" + b"\1\1" * size_px[0]) * size_px[1], 9)
    return png(*size_px, *more, rows=rows, bits=16)


DEPTHS: dict[str, Callable[[], bytes]] = {
    "claims.npy": lambda: npy((10**6, 10**6)),
    "overflow.npy": lambda: npy((2**40, 2**40)),
    "negative.npy": lambda: npy((-64, -96), data=bytes(24576)),
    "objects.npy": lambda: npy((64, 96), "|O", b"cos\nsystem\n(S'id'\ntR."),
    "code.npy": lambda: npy(None, header="__import__('os').getcwd()"),
    "nested.npy": lambda: npy(None, header="(" * 60_000),
    "text.npy": lambda: npy((64, 96), "<U900000000"),
    "records.npy": lambda: npy((64, 96), [("a", "<f4", (10**9,))]),
    "dates.npy": lambda: npy((64, 96), "<M8[s]", bytes(8 * 6144)),
    "short.npy": lambda: npy((64, 96), data=bytes(7)),
    "not_finite.npy": lambda: npy((64, 96), data=np.full(6144, -np.inf, "<f4").tobytes()),
    "claims.png": lambda: png(60_000, 60_000, rows=b"", bits=16),
    "large.png": lambda: grey16((8000, 8000)),
    "short.png": lambda: png(96, 64, rows=zlib.compress(b"a"), bits=16),
    "colour.png": lambda: saved("PNG"),
    "claims.tif": lambda: grey_tiff(2**31 - 1, 2**31 - 1),
    "bomb.tif": lambda: grey_tiff(20_000, 20_000, 8, zlib.compress(bytes(4 * 10**8), 1)),
    "colour.tif": lambda: saved("TIFF"),
    "claims.pfm": lambda: pfm(10**9, 10**9),
    "digits.pfm": lambda: pfm("9" * 5000, 64),
    "negative.pfm": lambda: pfm(-96, -64, data=bytes(24576)),
    "scale.pfm": lambda: pfm(96, 64, "nan", bytes(24576)),
    "cut.pfm": lambda: pfm(96, 64, data=bytes(100)),
    "claims.exr": lambda: b"v/1\x01\x02\0\0\0" + b"\xff" * 300,
    "cut.exr": lambda: b"v/1\x01\x02\0\0\0channels\0chlist\0" + struct.pack("<I", 2**31) + bytes(40),
    "photo.jpg": lambda: saved("JPEG", PIL.Image.new("L", (96, 64), 9)),
    "text.txt": lambda: b"1 2 3\n" * 10_000,
    "empty.npz": lambda: b"",
}
