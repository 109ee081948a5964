"""What a screen shows of a photo and its depth, and what a click on it means. No torch import.

Pictures on a screen are smaller than the photo; points on them are given back in pixels of the photo, upright.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from ..errors import InputError
from ..files.arrays import check_depth
from ..files.pictures import depth_preview, shrunk_depth, size_within
from ..files.point_clouds import distance_between_m
from ..rendering.refocus import focus_distance_at

COLORMAPS = {"Magma": "magma", "Viridis": "viridis", "Cividis": "cividis", "Grey": "gray"}
"""What a visitor may choose: three perceptually even maps, the last of them fit for colour-blind eyes, and grey."""

_CROSS_ARM = 0.022  # of the picture's longer side


def photo_point(
    shown_px: Sequence[float], photo_size_px: tuple[int, int], max_side_px: int | None
) -> tuple[float, float] | None:
    """Where in the photo a click on its shown copy points; None for a click beside it, on the legend say.

    Args:
        shown_px: (x, y) of the pixel of the shown picture, whose upper left part is the copy.
        photo_size_px: (width, height) of the photo.
        max_side_px: what the copy was made to fit.

    Returns:
        (x, y) in pixels of the photo, of the clicked pixel's centre, or None.

    Raises:
        InputError: as `size_within` says.
    """
    shown_size = size_within(photo_size_px, max_side_px)
    point = [
        (int(at) + 0.5) * whole / shown for at, whole, shown in zip(shown_px, photo_size_px, shown_size, strict=True)
    ]
    inside = all(0 <= at < whole for at, whole in zip(point, photo_size_px, strict=True))
    return (point[0], point[1]) if inside else None


def marked(
    image: Image.Image, points_px: Sequence[tuple[float, float]], photo_size_px: tuple[int, int]
) -> Image.Image:
    """A copy of a picture with a cross on each point, and a line between two of them.

    Args:
        image: RGB picture that shows the photo at any scale.
        points_px: (x, y) of each point in pixels of the photo.
        photo_size_px: (width, height) of the photo.

    Returns:
        The picture; crosses are white with a dark rim, so that they show on any ground.
    """
    copy = image.copy()
    draw = ImageDraw.Draw(copy)
    arm = max(6, round(_CROSS_ARM * max(image.size)))
    line = max(2, round(arm / 7))
    scale = [shown / whole for shown, whole in zip(image.size, photo_size_px, strict=True)]
    centres = [(x * scale[0], y * scale[1]) for x, y in points_px]
    for color, width in (((20, 20, 20), 3 * line), ((255, 255, 255), line)):
        if len(centres) == 2:
            draw.line(centres, fill=color, width=width)
        for x, y in centres:
            draw.line([(x - arm, y), (x + arm, y)], fill=color, width=width)
            draw.line([(x, y - arm), (x, y + arm)], fill=color, width=width)
    return copy


def describe_depth(depth_m: np.ndarray, focal_length_px: float, points_px: Sequence[tuple[float, float]] = ()) -> str:
    """One sentence or two on a depth map: its ends, the depth at up to two points, the distance between them.

    Args:
        depth_m: z-depth in metres, floating point (H, W).
        focal_length_px: focal length in pixels of this depth map.
        points_px: up to two (x, y) in pixels of the depth map.

    Returns:
        Plain text.

    Raises:
        InputError: `depth_m` is no depth map, a point lies outside or on no depth, or there are more than two.
    """
    if len(points_px) > 2:
        raise InputError(f"points_px has {len(points_px)} points, wanted two at most.")
    finite = check_depth(depth_m)[np.isfinite(depth_m)]
    if not finite.size:
        return "There is no depth anywhere."
    ends = f"Nearest {finite.min():.3g} m, farthest {finite.max():.3g} m."
    for share, words in ((np.isinf(depth_m).mean(), "is infinitely far"), (np.isnan(depth_m).mean(), "has no depth")):
        if share:
            ends += f" {100 * share:.2g} % of the picture {words}."
    if not points_px:
        return ends
    depths_m = [focus_distance_at(depth_m, *point) for point in points_px]
    depths = " and ".join("infinitely far" if math.isinf(depth) else f"{depth:.3g} m" for depth in depths_m)
    if len(points_px) == 1 or math.inf in depths_m:
        return f"{depths} away. {ends}"
    apart = distance_between_m(depth_m, focal_length_px, *points_px)
    return f"{depths} away, {apart:.3g} m from each other. {ends}"


def depth_view(
    depth_m: np.ndarray,
    *,
    colormap: str = "Magma",
    near_bright: bool = True,
    max_side_px: int | None = None,
    points_px: Sequence[tuple[float, float]] = (),
) -> Image.Image:
    """A depth map in colours with its legend in metres, at a size for the screen, with marked points.

    Args:
        depth_m: z-depth in metres, floating point (H, W).
        colormap: a name of `COLORMAPS`.
        near_bright: whether near is bright; otherwise dark.
        max_side_px: longest side of the map, legend not counted; None keeps the size.
        points_px: (x, y) of the points to mark, in pixels of the depth map.

    Returns:
        RGB picture, the map at its upper left.

    Raises:
        InputError: the colour map has no such name, or as `pictures.depth_preview` says.
    """
    if colormap not in COLORMAPS:
        raise InputError(f"colormap is {colormap!r}, wanted one of {', '.join(COLORMAPS)}")
    full_px = check_depth(depth_m).shape[::-1]
    size_px = size_within(full_px, max_side_px)
    name = COLORMAPS[colormap] + ("_r" if near_bright else "")
    picture = depth_preview(shrunk_depth(depth_m, size_px), colormap=name)
    if not points_px:
        return picture
    picture.paste(marked(picture.crop((0, 0, *size_px)), points_px, full_px), (0, 0))
    return picture
