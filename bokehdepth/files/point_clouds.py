"""Points in space from a depth map: distances between them, and PLY and GLB files of them. No torch import.

The files are written by trimesh (extra ``mesh``).

A pixel (column i, row j) with z-depth Z lies at ``((i + 0.5 - W/2) Z / f, (j + 0.5 - H/2) Z / f, Z)`` for a focal
length of f pixels: x to the right, y down, z away from the camera, metres, as ``Camera.intrinsics`` has it.
"""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..camera.lens import check_number
from ..errors import InputError, load_extra
from ..rendering.refocus import focus_distance_at
from .arrays import check_depth
from .atomic import write_file

MAX_POINTS = 1_000_000
"""Most points of a PLY file; of a larger picture every second, third, ... column and row is taken."""

MAX_VERTICES = 120_000
"""Most corners of a GLB mesh, so that a phone can turn it."""

_TEXTURE_SIDE_PX = 2048
_TEAR_RATIO = 1.15  # neighbours whose depths differ by more are taken for two things, one before the other
_CLAMP_TO_EDGE = 33071  # glTF 2.0, section 3.8.4.4


def _grid(
    image: Image.Image, depth_m: np.ndarray, focal_length_px: float, most: int, name: str
) -> tuple[np.ndarray, int]:
    """Places of every n-th pixel (h, w, 3) and n, the smallest that leaves at most ``most`` points."""
    if image.size != check_depth(depth_m).shape[::-1]:
        raise InputError(
            f"depth_m has {depth_m.shape[1]} x {depth_m.shape[0]} pixels, wanted the picture's {image.width} x "
            f"{image.height}"
        )
    if isinstance(most, bool) or not isinstance(most, int) or most < 4:
        raise InputError(f"{name} is {most!r}, wanted a whole number, 4 or more")
    step = max(1, math.isqrt(depth_m.size // most))
    while math.ceil(depth_m.shape[0] / step) * math.ceil(depth_m.shape[1] / step) > most:
        step += 1
    return points_from_depth(depth_m, focal_length_px, step=step), step


def points_from_depth(depth_m: np.ndarray, focal_length_px: float, *, step: int = 1) -> np.ndarray:
    """Place every pixel of a depth map in space.

    Args:
        depth_m: z-depth in metres, floating point (H, W), above 0; NaN and inf give points that are not finite.
        focal_length_px: focal length in pixels of this depth map.
        step: takes every ``step``-th column and row.

    Returns:
        float32 (ceil(H / step), ceil(W / step), 3): x right, y down, z away from the camera, metres.

    Raises:
        InputError: ``depth_m`` is no depth map, or a number is out of range.
    """
    height, width = check_depth(depth_m).shape
    focal_px = check_number(focal_length_px, "focal_length_px", "px")
    if isinstance(step, bool) or not isinstance(step, int) or step < 1:
        raise InputError(f"step is {step!r}, wanted a whole number, 1 or more")
    z_m = depth_m[::step, ::step].astype(np.float32)
    slope_x = ((np.arange(0, width, step) + 0.5 - width / 2) / focal_px).astype(np.float32)
    slope_y = ((np.arange(0, height, step) + 0.5 - height / 2) / focal_px).astype(np.float32)
    return np.stack([z_m * slope_x, z_m * slope_y[:, None], z_m], axis=-1)


def distance_between_m(
    depth_m: np.ndarray, focal_length_px: float, first_px: tuple[float, float], second_px: tuple[float, float]
) -> float:
    """Measure the straight line in space, in metres, between what two points (x, y) of a picture show.

    Each depth is read as ``focus_distance_at`` reads it. The points are in pixels, below width and height.

    Raises:
        InputError: a point lies outside or is infinitely far, the depth around it has no value, or the focal length is
            out of range.
    """
    height, width = check_depth(depth_m).shape
    focal_px = check_number(focal_length_px, "focal_length_px", "px")
    places = []
    for x_px, y_px in (first_px, second_px):
        z_m = focus_distance_at(depth_m, x_px, y_px)
        if math.isinf(z_m):
            raise InputError(f"the point ({x_px:g}, {y_px:g}) is infinitely far, wanted one at a finite distance.")
        places.append(((x_px - width / 2) * z_m / focal_px, (y_px - height / 2) * z_m / focal_px, z_m))
    return math.dist(*places)


def save_ply(
    path: Path | str,
    image: Image.Image,
    depth_m: np.ndarray,
    *,
    focal_length_px: float,
    max_points: int = MAX_POINTS,
    overwrite: bool = False,
) -> Path:
    """Write a picture as coloured points in space: binary PLY, x right, y down, z away from the camera, metres.

    Args:
        path: file to write.
        image: RGB picture of W x H pixels.
        depth_m: z-depth in metres, floating point (H, W), above 0; pixels that are not finite give no point.
        focal_length_px: focal length in pixels of this depth map.
        max_points: most points; above it only every n-th column and row is taken.
        overwrite: whether an existing file is replaced.

    Returns:
        The path written.

    Raises:
        InputError: trimesh is not installed, sizes or numbers do not fit, no pixel has a finite depth, or the path
            cannot be used.
    """
    points, step = _grid(image, depth_m, focal_length_px, max_points, "max_points")
    seen = np.isfinite(points[..., 2])
    if not seen.any():
        raise InputError("depth_m has no finite value, wanted one pixel with a depth or more")
    trimesh = load_extra("trimesh", "mesh", "a point cloud as PLY")
    colors = np.asarray(image.convert("RGB"))[::step, ::step][seen]
    cloud = trimesh.PointCloud(points[seen], colors)
    data = cloud.export(file_type="ply")
    return write_file(path, lambda file: file.write(data), overwrite=overwrite)


def save_glb(
    path: Path | str,
    image: Image.Image,
    depth_m: np.ndarray,
    *,
    focal_length_px: float,
    max_vertices: int = MAX_VERTICES,
    overwrite: bool = False,
) -> Path:
    """Write the picture as a relief in space: one binary glTF 2.0 file, a mesh with the picture on it.

    Axes are glTF's: x right, y up, the camera at the origin looking along -z; metres. The mesh is torn where depth
    jumps by more than 15 % from one corner to the next, so that a thing is not tied to what lies behind it.

    Args:
        path: file to write.
        image: RGB picture of W x H pixels; on the mesh it has at most 2048 px on a side.
        depth_m: z-depth in metres, floating point (H, W), above 0; there is no surface where it is not finite.
        focal_length_px: focal length in pixels of this depth map.
        max_vertices: most corners of the mesh; above it only every n-th column and row is taken.
        overwrite: whether an existing file is replaced.

    Returns:
        The path written.

    Raises:
        InputError: trimesh is not installed, sizes or numbers do not fit, no surface is left, or the path cannot be
            used.
    """
    points, step = _grid(image, depth_m, focal_length_px, max_vertices, "max_vertices")
    triangles = _triangles(points[..., 2])
    if not len(triangles):
        raise InputError("depth_m has no surface: wanted neighbours with finite and similar depths")
    trimesh = load_extra("trimesh", "mesh", "a relief as GLB")
    used, corners = np.unique(triangles, return_inverse=True)
    places = points.reshape(-1, 3)[used] * np.float32([1, -1, -1])
    rows, columns = np.divmod(used, points.shape[1])
    across, down = (columns * step + 0.5) / image.width, (rows * step + 0.5) / image.height
    visual = trimesh.visual.TextureVisuals(
        uv=np.stack([across, 1 - down], axis=-1),  # trimesh counts v from the lower edge, glTF from the upper one
        material=trimesh.visual.material.PBRMaterial(
            baseColorTexture=_texture(image), metallicFactor=0.0, doubleSided=True
        ),
    )
    # Without process=False trimesh looks for corners to merge, of which a grid has none.
    mesh = trimesh.Trimesh(places, corners.reshape(-1, 3), visual=visual, process=False)
    scene = trimesh.Scene({"photo": mesh})
    data = scene.export(file_type="glb", include_normals=False, tree_postprocessor=_as_photo)
    return write_file(path, lambda file: file.write(data), overwrite=overwrite)


def _texture(image: Image.Image) -> Image.Image:
    """The picture as JPEG, which trimesh then takes as it is; as PNG the file would be five times as large."""
    texture = image.convert("RGB")
    texture.thumbnail((_TEXTURE_SIDE_PX, _TEXTURE_SIDE_PX))
    encoded = io.BytesIO()
    texture.save(encoded, format="JPEG", quality=92)
    return Image.open(encoded)


def _as_photo(tree: dict[str, Any]) -> None:
    """Shows a texture as it was photographed: no lamp lights it, and its edges do not wrap around."""
    tree["extensionsUsed"] = [*tree.get("extensionsUsed", ()), "KHR_materials_unlit"]
    for material in tree["materials"]:
        material["extensions"] = {"KHR_materials_unlit": {}}
    tree["samplers"] = [{"wrapS": _CLAMP_TO_EDGE, "wrapT": _CLAMP_TO_EDGE}]
    for texture in tree["textures"]:
        texture["sampler"] = 0


def _triangles(z_m: np.ndarray) -> np.ndarray:
    """Corner numbers (n, 3) of two triangles for each cell of the grid, seen counter-clockwise, torn at jumps."""
    height, width = z_m.shape
    number = np.arange(height * width).reshape(height, width)
    upper_left, upper_right = number[:-1, :-1].ravel(), number[:-1, 1:].ravel()
    lower_left, lower_right = number[1:, :-1].ravel(), number[1:, 1:].ravel()
    triangles = np.concatenate(
        [
            np.stack([upper_left, lower_left, upper_right], axis=-1),
            np.stack([upper_right, lower_left, lower_right], axis=-1),
        ]
    )
    depths = z_m.ravel()[triangles]
    with np.errstate(invalid="ignore"):
        whole = np.isfinite(depths).all(axis=1) & (depths.max(axis=1) <= _TEAR_RATIO * depths.min(axis=1))
    return triangles[whole]
