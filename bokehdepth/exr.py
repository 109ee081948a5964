"""Depth as OpenEXR, for compositing programs: one 32-bit float channel ``Z`` in metres. No torch import.

The OpenEXR library (extra ``exr``) writes it; reading is left to the programs that such files are made for.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .extras import load_extra
from .io import check_depth
from .optics import check_number
from .staging import write_file


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
        InputError: OpenEXR is not installed, ``depth_m`` is no depth map, the focal length is out of range, or the
            path cannot be used.
    """
    depth = np.ascontiguousarray(check_depth(depth_m), dtype=np.float32)
    focal_px = check_number(focal_length_px, "focal_length_px", "px")
    openexr = load_extra("OpenEXR", "exr", "depth as EXR")
    header = {
        "compression": openexr.ZIP_COMPRESSION,
        "type": openexr.scanlineimage,
        "comments": "z-depth in metres",
        "focal_length_px": float(focal_px),
    }
    picture = openexr.File(header, {"Z": depth})
    return write_file(path, lambda file: picture.write(file.name), overwrite=overwrite)
