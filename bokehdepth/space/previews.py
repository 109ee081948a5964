"""Small pictures of a result for the screen, written into the result's folder. No torch import.

The downloads have the photo's own size; what is shown is smaller, and JPEG where nothing sharp-edged is in it.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ..files.depth_maps import DepthFile, load_depth_npz
from ..files.photos import Photo
from ..files.pictures import shrunk_image
from ..tasks.result_files import DEPTH_NAMES
from . import viewing

SHOWN_SIDE_PX = 1600
"""Longest side of what the page shows."""

REFOCUSED_SIDE_PX = 1024
"""Longest side of a refocused preview, which follows a click within a second or so."""


def write_preview(folder: Path, name: str, picture: Image.Image, max_side_px: int = SHOWN_SIDE_PX) -> str:
    """Write an RGB picture of any size for the screen, as `name`.jpg in a folder that exists; the path of the JPEG."""
    path = folder / f"{name}.jpg"
    shrunk_image(picture, max_side_px).save(path, quality=90)
    return str(path)


def write_frames(folder: Path, pictures: Sequence[Image.Image]) -> list[str]:
    """Write the frames of a stack for the screen, as `write_preview` does; their paths in the same order."""
    return [write_preview(folder, f"frame{number}", picture) for number, picture in enumerate(pictures)]


def write_depth_view(
    folder: Path, depth: DepthFile, colormap: str, near_bright: bool, points_px: Sequence = ()
) -> tuple[str, str]:
    """Write a depth map for the screen, in a folder that exists.

    Args:
        folder: where it goes.
        depth: what is shown.
        colormap: a name of `viewing.COLORMAPS`.
        near_bright: whether near is bright; otherwise dark.
        points_px: up to two (x, y) to mark, in pixels of the depth map.

    Returns:
        Path of the PNG, and sentences on the depth and the points.
    """
    looks = {"colormap": colormap, "near_bright": near_bright, "max_side_px": SHOWN_SIDE_PX}
    picture = viewing.depth_view(depth.depth_m, points_px=points_px, **looks)
    words = viewing.describe_depth(depth.depth_m, depth.focal_length_px, points_px)
    path = folder / f"depth_view{len(list(folder.glob('depth_view*')))}.png"  # the one before may just be on its way
    picture.save(path, compress_level=1)
    return str(path), words


def write_depth(
    npz: Path, photo: Photo, colormap: str, near_bright: bool, folder: Path | None = None
) -> tuple[str, str, list, str]:
    """Write what the page shows of a depth map, beside it if no folder is named, and the photo before it is refocused.

    Returns:
        Path of the PNG, sentences on the depth, no points on it, and the path of the photo's JPEG.
    """
    folder = npz.parent if folder is None else folder
    view = write_depth_view(folder, load_depth_npz(npz), colormap, near_bright)
    return *view, [], write_preview(folder, "start", photo.image, REFOCUSED_SIDE_PX)


def write_result(folder: Path, photo: Photo, colormap: str, near_bright: bool) -> tuple:
    """Write what the page shows of a result's folder beside its stack: `write_depth`'s with `pack_result`'s files."""
    *view, start = write_depth(folder / DEPTH_NAMES[0], photo, colormap, near_bright, folder.parent)
    return *view, *pack_result(folder), start


def pack_result(folder: Path) -> tuple[str, str, str, str]:
    """Pack a result's folder beside it; paths of the ZIP, the 16-bit PNG, the NPZ and the run record."""
    archive = folder.parent / "bokehdepth.zip"
    with zipfile.ZipFile(archive, "w") as packed:  # stored, since pictures are compressed and depth hardly can be
        for path in sorted(folder.iterdir()):
            packed.write(path, path.name)
    npz, png, _ = (str(folder / name) for name in DEPTH_NAMES)
    return str(archive), png, npz, str(folder / "run.json")
