"""Refocusing: a photo and its depth seen through a lens of another aperture and focus, with occlusion.

The pixels are divided into layers by their signed blur radius: one layer in focus, then layers whose radii grow by a
fixed ratio, in front of the focus and behind it. Inside a layer every pixel keeps its exact radius. What nearer layers
hide of a layer is continued from what is seen of it and of everything behind it, before blurring. The layers are laid
over each other in linear light; a pixel in focus is never touched by what lies behind it. No torch import.
"""

import math

import numpy as np
from scipy import ndimage

from bokehdepth.errors import InputError
from bokehdepth.optics import REFERENCE_WIDTH_PX, check_number
from bokehdepth.rendering._refocus_numba import (
    TILE_PX,
    complete,
    divide,
    forget,
    halve,
    lay_behind,
    lay_sharp,
    scatter_layer,
    take_own,
    tiles_above,
)
from bokehdepth.rendering.aperture import DISK, MAX_RADIUS_PX, Aperture, SpanTable, span_table
from bokehdepth.rendering.layered import IDENTITY_RADIUS_PX
from bokehdepth.rendering.scatter import check_image, from_light, to_light

_RATIO = 2.0  # of the radii at the two ends of a layer
_NOTHING = 1e-3  # of the light: less of it is not looked for


def check_depth_for(depth_m: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Check a depth map that is rendered with.

    Args:
        depth_m: z-depth in metres.
        image: The picture that it belongs to, ``(H, W, 3)``.

    Returns:
        float32 ``(H, W)``.

    Raises:
        InputError: If it is no floating-point array of the picture's size, or not finite and above 0 everywhere.
    """
    if not (isinstance(depth_m, np.ndarray) and depth_m.dtype.kind == "f" and depth_m.ndim == 2):
        described = f"{depth_m.dtype} {depth_m.shape}" if isinstance(depth_m, np.ndarray) else type(depth_m).__name__
        raise InputError(f"depth_m is {described}, wanted a floating-point array (H, W) in metres")
    if depth_m.shape != image.shape[:2]:
        raise InputError(
            f"depth_m has {depth_m.shape[1]} x {depth_m.shape[0]} pixels, wanted the picture's "
            f"{image.shape[1]} x {image.shape[0]}"
        )
    bad = ~(np.isfinite(depth_m) & (depth_m > 0))
    if bad.any():
        raise InputError(
            f"depth_m has {int(bad.sum())} pixels that are not finite and above 0 (the first is "
            f"{float(depth_m[bad][0])!r}), wanted metres everywhere"
        )
    return depth_m.astype(np.float32)


def focus_distance_at(depth_m: np.ndarray, x_px: float, y_px: float) -> float:
    """Read the focus distance off a depth map: the median of the 5x5 pixels around a point.

    Args:
        depth_m: z-depth ``(H, W)`` in metres, finite and above 0 around the point.
        x_px: Column, from 0 at the left edge up to but not including the width.
        y_px: Row, from 0 at the upper edge up to but not including the height.

    Returns:
        S1 in metres.

    Raises:
        InputError: If the point lies outside the picture or the depth around it is not finite and above 0.
    """
    height, width = depth_m.shape
    if not (0 <= x_px < width and 0 <= y_px < height):
        raise InputError(
            f"focus point is ({x_px:g}, {y_px:g}), wanted a point inside the picture of {width} x {height}"
        )
    row, column = int(y_px), int(x_px)
    around = depth_m[max(row - 2, 0) : row + 3, max(column - 2, 0) : column + 3]
    distance_m = float(np.median(around))
    if not (np.isfinite(around).all() and distance_m > 0):
        raise InputError(f"depth_m is not finite and above 0 around the focus point ({x_px:g}, {y_px:g})")
    return distance_m


def signed_radius_px(depth_m: np.ndarray, bokeh_strength: float, focus_distance_m: float) -> np.ndarray:
    """Blur radius of every pixel, negative behind the focus: ``K * (W / 512) * (1/depth - 1/S1)`` (Eq. 15, 26).

    Args:
        depth_m: z-depth ``(H, W)`` in metres, above 0.
        bokeh_strength: K, 0 or more.
        focus_distance_m: S1 in metres, more than 0; infinity is allowed.

    Returns:
        float32 ``(H, W)`` in pixels.

    Raises:
        InputError: If a number is out of range, or a radius is more than 512 px.
    """
    strength = check_number(bokeh_strength, "bokeh_strength", zero=True)
    focus_m = check_number(focus_distance_m, "focus_distance_m", "m", infinity=True)
    radius = np.float32(strength * depth_m.shape[1] / REFERENCE_WIDTH_PX) * (1 / depth_m - np.float32(1 / focus_m))
    largest = float(np.abs(radius).max())
    if not largest <= MAX_RADIUS_PX:
        raise InputError(
            f"bokeh_strength is {strength:g}, which blurs a pixel with a radius of {largest:.0f} px, wanted at most "
            f"{MAX_RADIUS_PX} px"
        )
    return radius.astype(np.float32)


def render_from_depth(
    image: np.ndarray,
    depth_m: np.ndarray,
    bokeh_strength: float,
    focus_distance_m: float,
    *,
    aperture: Aperture = DISK,
) -> np.ndarray:
    """Render a sharp photo with its depth through a lens (Eq. 15, 26), with occlusion.

    Args:
        image: The all-in-focus photo, float32 ``(H, W, 3)`` display values in [0, 1].
        depth_m: z-depth ``(H, W)`` in metres, floating point, finite and above 0.
        bokeh_strength: K, 0 or more, not limited to what networks are trained on; 0 gives ``image`` back.
        focus_distance_m: S1 in metres, more than 0; infinity is allowed.
        aperture: Shape of the lens opening; upright behind the focus, through its centre in front of it.

    Returns:
        The picture, float32 ``(H, W, 3)`` display values in [0, 1].

    Raises:
        InputError: If the picture or the depth is not as above, or as `signed_radius_px` says.
    """
    image = check_image(image)
    depth = check_depth_for(depth_m, image)
    signed = signed_radius_px(depth, bokeh_strength, focus_distance_m)
    if np.abs(signed).max() <= IDENTITY_RADIUS_PX:
        return image.copy()
    return from_light(refocus_light(to_light(image), signed, aperture=aperture))


def refocus_light(light: np.ndarray, signed_px: np.ndarray, *, aperture: Aperture = DISK) -> np.ndarray:
    """Render linear light with a blur radius for each pixel, with occlusion: the core of `render_from_depth`.

    Args:
        light: Linear light, float32 ``(H, W, 3)``, finite, 0 or more.
        signed_px: Blur radius in pixels, negative behind the focus, float32 ``(H, W)``, as `signed_radius_px` says.
        aperture: Shape of the lens opening.

    Returns:
        Linear light, float32 ``(H, W, 3)``.

    Raises:
        InputError: If a radius is more than 512 px.
    """
    return _Canvas(light, signed_px, aperture).rendered()


class _Canvas:
    """One rendering: the photo continued beyond its frame, and the layers laid behind each other, nearest first."""

    def __init__(self, light: np.ndarray, signed_px: np.ndarray, aperture: Aperture) -> None:
        self.size = signed_px.shape
        self.radius = np.abs(signed_px)
        self.largest_px = float(self.radius.max())
        tables = [span_table(shape, 0.0, self.largest_px) for shape in (aperture, aperture.mirrored())]
        self.up, self.aside = (max(getattr(t, name) for t in tables) for name in ("half_height_px", "half_width_px"))
        rim = ((self.up, self.up), (self.aside, self.aside))
        self.light = np.pad(light, (*rim, (0, 0)), mode="edge")
        self.radius = np.pad(self.radius, rim, mode="edge")
        self.number = np.pad(_layer_numbers(signed_px), rim, mode="edge")
        self.corner = np.array([self.up, self.aside], dtype=np.int64)
        rows, self.stride = self.number.shape[0] + 2 * self.up, self.number.shape[1] + 2 * self.aside + 2
        self.canvas = np.zeros((rows, self.stride, 4), dtype=np.float32)
        self.steps = tables[0].steps_per_px
        self.upright, self.through = ((t.first, self._offsets(t), t.pair) for t in tables)

    def _offsets(self, table: SpanTable) -> np.ndarray:
        return ((table.row * self.stride + table.column) * 4).astype(np.int32)

    def rendered(self) -> np.ndarray:
        """Render: linear light ``(H, W, 3)``."""
        out = np.zeros((*self.size, 3), dtype=np.float32)
        total, passed = np.zeros(self.size, dtype=np.float32), np.ones(self.size, dtype=np.float32)
        cells = tuple((length + 1) // 2 for length in self.number.shape)
        half, weight = np.zeros((*cells, 5), dtype=np.float32), np.zeros(cells, dtype=np.float32)
        known = np.full(cells, 4, dtype=np.int32)
        known[-1] //= 1 + self.number.shape[0] % 2
        known[:, -1] //= 1 + self.number.shape[1] % 2
        lowest = int(self.number.min())
        layers = np.flatnonzero(np.bincount((self.number - lowest).ravel()))[::-1] + lowest
        for layer in map(int, layers):
            if layer != layers[0]:
                take_own(self.light, self.radius, self.number, layer, known, half, weight)
                _continue(half, weight)
            self._lay(layer, half, known, (out, total, passed))
            if passed.max() <= _NOTHING:
                break
            forget(self.number, layer, known)
        divide(out, total, _NOTHING)
        return out

    def _lay(self, layer: int, half: np.ndarray, known: np.ndarray, so_far: tuple[np.ndarray, ...]) -> None:
        """Scatter one layer and lay it behind ``so_far``: light, opacity and what still passes."""
        if layer == 0:
            lay_sharp(self.light, self.number, half, self.corner, *so_far)
            return
        ends = IDENTITY_RADIUS_PX * _RATIO ** (abs(layer) - 1), IDENTITY_RADIUS_PX * _RATIO ** abs(layer)
        reach = math.ceil(ends[1])
        up, aside = min(reach, self.up), min(reach, self.aside)
        span = np.minimum(ends, self.largest_px).astype(np.float32)
        rows, columns = (
            (self.up - up, self.up + self.size[0] + up),
            (self.aside - aside, self.aside + self.size[1] + aside),
        )
        places = (self.up * self.stride + self.aside) * 4, self.stride * 4
        geometry = np.array([*places, self.steps, *rows, *columns], dtype=np.int64)
        table = self.through if layer > 0 else self.upright
        flat = self.canvas.reshape(-1)
        surface = self.light, self.radius, self.number
        wanted = self._seen_through(so_far[2], reach)
        top, bottom = scatter_layer(*surface, layer, half, known, wanted, span, table, flat, geometry)
        lay_behind(self.canvas, *so_far, top, bottom + 2 * self.up, 2 * self.corner)

    def _seen_through(self, passed: np.ndarray, reach: int) -> np.ndarray:
        """Tiles of the continued photo where a layer can be seen that reaches so far: none is missed."""
        tiles = np.zeros([-(-length // TILE_PX) for length in self.number.shape], dtype=bool)
        tiles_above(passed, _NOTHING, tiles, self.corner)
        count = -(-reach // TILE_PX)
        return ndimage.binary_dilation(tiles, np.ones((2 * count + 1,) * 2)) if count else tiles


def _continue(half: np.ndarray, weight: np.ndarray) -> None:
    """Continue the known cells smoothly over the unknown ones, in place, near ones most: pull and push."""
    levels = [(half, weight)]
    while max(levels[-1][1].shape) > 1 and levels[-1][1].min() < 1:
        levels.append(halve(*levels[-1]))
    for (fine, share), (coarse, _) in zip(levels[-2::-1], levels[:0:-1], strict=True):
        complete(fine, share, coarse)


def _layer_numbers(signed_px: np.ndarray) -> np.ndarray:
    """Number of each pixel's layer: 0 in focus, growing with the nearness to the camera; int32 ``(H, W)``."""
    steps = np.log(np.maximum(np.abs(signed_px) / IDENTITY_RADIUS_PX, 1)) / math.log(_RATIO)
    return (np.sign(signed_px) * np.ceil(steps)).astype(np.int32)
