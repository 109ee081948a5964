"""Depth as OpenEXR, for compositing programs and from them. No torch import.

What is written has one 32-bit float channel ``Z`` in metres and says so in the attribute ``depth_unit``. Other
programs name the channel of depth in their own ways and say no unit. The OpenEXR library (extra ``exr``) does both.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..camera.lens import check_number
from ..errors import InputError, load_extra
from .arrays import check_depth, check_file
from .atomic import write_file

_UNIT_ATTRIBUTE = "depth_unit"
_CHANNEL_NAMES = ("z", "depth", "y")
"""Last part of the name of a channel of depth, the surest first: OpenEXR's and Blender's Z, a plain name, grey."""

_MOST_CHANNELS = 8
"""The library reads all channels; so many of a picture of the largest size, or more of a smaller one."""


def save_depth_exr(path: Path | str, depth_m: np.ndarray, *, focal_length_px: float, overwrite: bool = False) -> Path:
    """Write a depth map as OpenEXR without loss; arguments and result are those of ``save_depth_npz``.

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
        _UNIT_ATTRIBUTE: "m",
        "focal_length_px": float(focal_px),
    }
    picture = openexr.File(header, {"Z": depth})
    return write_file(path, lambda file: picture.write(file.name), overwrite=overwrite)


def load_exr_channel(
    path: Path | str, check_shape: Callable[[tuple[int, int]], None], max_pixels: int
) -> tuple[np.ndarray, bool]:
    """Read the channel of an OpenEXR file that holds depth.

    That is its only channel, or the one whose name ends in ``Z`` (``ViewLayer.Depth.Z``), else in ``depth`` or ``Y``,
    else the one of a layer called ``Depth``, else ``R`` where ``G`` and ``B`` hold the same.

    Args:
        path: the file.
        check_shape: raises InputError for an array of a shape (H, W) that is not to be read.
        max_pixels: most pixels that a picture may have; all channels together may have eight times as many values.

    Returns:
        The values as they are stored, half, float or unsigned integer (H, W), and whether the file says that they are
        metres.

    Raises:
        InputError: OpenEXR is not installed, the file is missing, damaged, too large or of deep pixels, or it is not
            clear which channel is depth.
    """
    path = check_file(path)
    openexr = load_extra("OpenEXR", "exr", "depth from EXR")
    try:
        with openexr.File(str(path), header_only=True) as file:
            headers = [dict(part.header) for part in file.parts]
        for header in headers:
            _check_header(openexr, header, path.name, max_pixels)
        number, names = _find_channels(headers, path.name)
        check_shape(_shape(headers[number]))
        with openexr.File(str(path), separate_channels=True) as file:
            if len(file.parts) != len(headers):  # the library leaves out a part whose pixels it cannot read
                raise ValueError("a part is damaged")
            channels = [file.channels(number)[name].pixels for name in names]
    except (RuntimeError, ValueError, TypeError, KeyError, MemoryError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"file {path.name!r} is no readable exr file: it is damaged or cut short.") from error
    if any(not np.array_equal(channels[0], other, equal_nan=True) for other in channels[1:]):
        raise InputError(f"file {path.name!r} is a picture in colour, wanted a channel Z or depth.")
    return channels[0], headers[number].get(_UNIT_ATTRIBUTE) == "m"


def _check_header(openexr: Any, header: dict[str, Any], name: str, max_pixels: int) -> None:
    if header["type"] not in (openexr.scanlineimage, openexr.tiledimage):
        raise InputError(f"file {name!r} holds deep pixels, wanted one depth for each pixel.")
    height, width = _shape(header)
    if width * height * len(header["channels"]) > _MOST_CHANNELS * max_pixels:
        raise InputError(f"file {name!r} has {len(header['channels'])} channels, wanted depth alone at this size.")


def _shape(header: dict[str, Any]) -> tuple[int, int]:
    (left, top), (right, bottom) = (map(int, corner) for corner in header["dataWindow"])
    return bottom - top + 1, right - left + 1


def _find_channels(headers: list[dict[str, Any]], file_name: str) -> tuple[int, list[str]]:
    """Part and name of the channel of depth; of three channels where they are red, green and blue."""
    all_names = [(number, channel.name) for number, header in enumerate(headers) for channel in header["channels"]]
    if len(all_names) == 1:
        return all_names[0][0], [all_names[0][1]]
    levels = [[found for found in all_names if found[1].lower().split(".")[-1] == last] for last in _CHANNEL_NAMES]
    levels.append([found for found in all_names if "depth" in found[1].lower().split(".")[:-1]])
    found = next((level for level in levels if level), [])
    if len(found) == 1:
        return found[0][0], [found[0][1]]
    if not found and len(headers) == 1 and {name for _, name in all_names} - {"A"} == {"R", "G", "B"}:
        return 0, ["R", "G", "B"]
    names = ", ".join(name for _, name in all_names[:12])
    raise InputError(f"file {file_name!r} has the channels {names}, wanted one of depth, such as Z.")
