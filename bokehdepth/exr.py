"""Depth as OpenEXR, for compositing programs: one 32-bit float channel ``Z`` in metres. No torch import.

Written after the public description of the file layout (OpenEXR, "File Layout"): single part, scan lines, ZIP
compression in blocks of 16 lines. Reading is left to the programs that such files are made for.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np

from .errors import InputError
from .io import check_depth
from .optics import check_number
from .staging import write_file

_MAGIC, _VERSION, _FLOAT, _ZIP, _BLOCK_LINES = 20000630, 2, 2, 3, 16


def _attribute(name: str, kind: str, value: bytes) -> bytes:
    return b"".join((name.encode(), b"\0", kind.encode(), b"\0", struct.pack("<i", len(value)), value))


def _packed(lines: bytes) -> bytes:
    """Compress one block: even bytes before odd ones, differences of neighbours, then zlib; as it is if no smaller."""
    raw = np.frombuffer(lines, dtype=np.uint8)
    sorted_bytes = np.concatenate([raw[::2], raw[1::2]])
    steps = sorted_bytes.copy()
    steps[1:] = sorted_bytes[1:] - sorted_bytes[:-1] + np.uint8(128)  # modulo 256
    packed = zlib.compress(steps.tobytes(), 4)
    return packed if len(packed) < len(lines) else lines


def save_depth_exr(path: Path | str, depth_m: np.ndarray, *, focal_length_px: float, overwrite: bool = False) -> Path:
    """Write a depth map as OpenEXR without loss.

    Args:
        path: file to write.
        depth_m: z-depth in metres, floating point (H, W), above 0; NaN and inf are kept.
        focal_length_px: focal length in pixels of this depth map, kept as the attribute ``focal_length_px``.
        overwrite: whether an existing file is replaced.

    Returns:
        The path written.

    Raises:
        InputError: ``depth_m`` is no depth map, the focal length is out of range, or the path cannot be used.
    """
    depth = check_depth(depth_m).astype("<f4")
    focal_px = check_number(focal_length_px, "focal_length_px", "px")
    height, width = depth.shape
    if max(height, width) > 2**24:
        raise InputError(f"depth_m has {width} x {height} pixels, wanted at most {2**24} on a side")
    window = struct.pack("<4i", 0, 0, width - 1, height - 1)
    channel = b"Z\0" + struct.pack("<iB3xii", _FLOAT, 0, 1, 1) + b"\0"
    header = struct.pack("<ii", _MAGIC, _VERSION)
    header += _attribute("channels", "chlist", channel)
    header += _attribute("comments", "string", b"z-depth in metres")
    header += _attribute("compression", "compression", bytes([_ZIP]))
    header += _attribute("dataWindow", "box2i", window)
    header += _attribute("displayWindow", "box2i", window)
    header += _attribute("focal_length_px", "float", struct.pack("<f", focal_px))
    header += _attribute("lineOrder", "lineOrder", b"\0")
    header += _attribute("pixelAspectRatio", "float", struct.pack("<f", 1))
    header += _attribute("screenWindowCenter", "v2f", struct.pack("<2f", 0, 0))
    header += _attribute("screenWindowWidth", "float", struct.pack("<f", 1)) + b"\0"
    blocks = []
    for row in range(0, height, _BLOCK_LINES):
        packed = _packed(depth[row : row + _BLOCK_LINES].tobytes())
        blocks.append(struct.pack("<ii", row, len(packed)) + packed)
    first = len(header) + 8 * len(blocks)
    offsets = first + np.cumsum([0, *map(len, blocks[:-1])], dtype="<u8")
    data = b"".join((header, offsets.astype("<u8").tobytes(), *blocks))
    return write_file(path, lambda file: file.write(data), overwrite=overwrite)
