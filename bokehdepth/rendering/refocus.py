"""Refocusing: a photo and its depth seen through a lens of another aperture and focus, with occlusion.

The pixels are divided into layers by their signed blur radius: one layer in focus, then four to an octave of radii, in
front of the focus and behind it. Inside a layer every pixel keeps its exact radius. The layers are laid behind each
other in linear light; a pixel in focus is never touched by what lies behind it.

A slanted surface lies in many layers, and they must leave no trace on it. So what is seen goes first: layers within an
octave of each other share the light, and each fills what the nearer ones leave free. On a smooth surface that is all
of it, whatever the layers. Behind a straight edge on the same side of the focus it is right too: the part of the lens
that looks past the edge sees what the photo shows. Only what then is missing comes from behind the edge: a layer is
continued there from what is seen of it and of everything behind it. Nothing is hidden behind a slope, so that is done
near jumps of the radius alone, and an edge that a smoothed depth map makes soft is taken for a jump. Layers further
apart, or on two sides of the focus, cover each other independently. No torch import.
"""

import math
import reprlib
from numbers import Real

import numpy as np
from scipy import ndimage

from bokehdepth.camera.lens import REFERENCE_WIDTH_PX, check_number
from bokehdepth.errors import InputError
from bokehdepth.rendering._refocus_numba import (
    TILE_PX,
    complete,
    divide,
    divide_soft_edges,
    halve,
    lay_behind,
    lay_sharp,
    mark_seen,
    scatter_hidden,
    scatter_own,
    sort_by_layer,
    survey,
    take_own,
)
from bokehdepth.rendering.aperture import DISK, MAX_RADIUS_PX, Aperture, SpanTable, span_table
from bokehdepth.rendering.layered import IDENTITY_RADIUS_PX
from bokehdepth.rendering.scatter import check_image, from_light, to_light

_LINKED = 4  # layers from one to the next octave
_RATIO = 2.0 ** (1 / _LINKED)  # of the radii at the two ends of a layer
_JUMP_PX = 0.4  # between neighbours; less is a slope, behind which nothing hides
_NOTHING = 1e-3  # of the light: less of it is not looked for
_LEAST_TOTAL = 1e-6  # of the opacity; a pixel alone reaches itself by more
_AROUND_PX = 32  # from which a hidden surface is continued
_NONE = 1 << 20  # no layer


def check_depth_for(depth_m: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Check a depth map that is rendered with.

    Args:
        depth_m: z-depth in metres; infinity is allowed, which the lens sees at 0 dioptres.
        image: The picture that it belongs to, ``(H, W, 3)``.

    Returns:
        float32 ``(H, W)``.

    Raises:
        InputError: If it is no floating-point array of the picture's size, or a pixel has no depth above 0.
    """
    if not (isinstance(depth_m, np.ndarray) and depth_m.dtype.kind == "f" and depth_m.ndim == 2):
        described = f"{depth_m.dtype} {depth_m.shape}" if isinstance(depth_m, np.ndarray) else type(depth_m).__name__
        raise InputError(f"depth_m is {described}, wanted a floating-point array (H, W) in metres")
    if depth_m.shape != image.shape[:2]:
        raise InputError(
            f"depth_m has {depth_m.shape[1]} x {depth_m.shape[0]} pixels, wanted the picture's "
            f"{image.shape[1]} x {image.shape[0]}"
        )
    bad = ~(depth_m > 0)
    if bad.any():
        raise InputError(
            f"depth_m has {int(bad.sum())} pixels that are not above 0 (the first is {float(depth_m[bad][0])!r}), "
            "wanted metres everywhere"
        )
    return depth_m.astype(np.float32)


def focus_distance_at(depth_m: np.ndarray, x_px: float, y_px: float) -> float:
    """Read the focus distance off a depth map: the median of the 5x5 pixels around a point.

    Args:
        depth_m: z-depth ``(H, W)`` in metres, above 0 around the point; infinity is allowed.
        x_px: Column, from 0 at the left edge up to but not including the width.
        y_px: Row, from 0 at the upper edge up to but not including the height.

    Returns:
        S1 in metres; infinity where most of the pixels are infinitely far.

    Raises:
        InputError: If the point lies outside the picture or a pixel around it has no depth above 0.
    """
    height, width = depth_m.shape
    if not all(isinstance(at, Real) and 0 <= at < most for at, most in ((x_px, width), (y_px, height))):
        point = f"({reprlib.repr(x_px)}, {reprlib.repr(y_px)})"
        raise InputError(f"focus point is {point}, wanted a point inside the picture of {width} x {height}")
    row, column = int(y_px), int(x_px)
    around = depth_m[max(row - 2, 0) : row + 3, max(column - 2, 0) : column + 3]
    if not (around > 0).all():
        raise InputError(f"depth_m is not above 0 around the focus point ({x_px:g}, {y_px:g})")
    return float(np.median(around))


def signed_radius_px(depth_m: np.ndarray, bokeh_strength: float, focus_distance_m: float) -> np.ndarray:
    """Blur radius of every pixel, negative behind the focus: ``K * (W / 512) * (1/depth - 1/S1)`` (Eq. 15, 26).

    Args:
        depth_m: z-depth ``(H, W)`` in metres, above 0; infinity is 0 dioptres, as in Eq. 15.
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

    def __init__(self, light: np.ndarray, radius_px: np.ndarray, aperture: Aperture) -> None:
        self.size = radius_px.shape
        signed_px = np.empty_like(radius_px)
        divide_soft_edges(radius_px, _JUMP_PX, signed_px)
        self.largest_px = max(float(np.abs(signed_px).max()), IDENTITY_RADIUS_PX)
        tables = [span_table(shape, 0.0, self.largest_px) for shape in (aperture, aperture.mirrored())]
        self.up, self.aside = (max(getattr(t, name) for t in tables) for name in ("half_height_px", "half_width_px"))
        rim = ((self.up, self.up), (self.aside, self.aside))
        self.light = np.pad(light, (*rim, (0, 0)), mode="edge")
        signed_px = np.pad(signed_px, rim, mode="edge")
        self.radius = np.abs(signed_px)
        self.number = np.pad(_layer_numbers(signed_px[self._frame]), rim, mode="edge")
        self.corner = np.array([self.up, self.aside], dtype=np.int64)
        rows, self.stride = self.number.shape[0] + 2 * self.up, self.number.shape[1] + 2 * self.aside + 2
        self.canvas = np.zeros((rows, self.stride, 4), dtype=np.float32)
        self.steps = tables[0].steps_per_px
        self.upright, self.through = ((t.first, self._offsets(t), t.pair) for t in tables)
        top_px = (tables[0].first.size - 2) / self.steps  # largest radius of the tables
        self.reach_per_px = (self.up + 1) / top_px, (self.aside + 1) / top_px

        self.lowest = int(self.number.min())
        count = int(self.number.max()) - self.lowest + 1
        self.first, self.place = sort_by_layer(self.number, self.lowest, count)
        tiles = tuple(-(-length // TILE_PX) for length in self.number.shape)
        self.present = np.zeros((count, *tiles), dtype=bool)
        self.jump_px, self.nearest = np.empty(tiles, dtype=np.float32), np.empty(tiles, dtype=np.int32)
        survey(signed_px, self.number, self.lowest, _JUMP_PX, self.present, self.jump_px, self.nearest)

        self.out = np.zeros((*self.size, 3), dtype=np.float32)
        self.total, self.cover = np.zeros(self.size, dtype=np.float32), np.zeros(self.size, dtype=np.float32)
        self.passed = np.ones(self.size, dtype=np.float32)
        self.last = np.full(self.size, _NONE, dtype=np.int32)
        self.left, self.right = (np.empty(self.number.shape[0], dtype=np.int32) for _ in range(2))

    @property
    def _frame(self) -> tuple[slice, slice]:
        return slice(self.up, self.up + self.size[0]), slice(self.aside, self.aside + self.size[1])

    def _offsets(self, table: SpanTable) -> np.ndarray:
        return ((table.row * self.stride + table.column) * 4).astype(np.int32)

    def rendered(self) -> np.ndarray:
        """Render: linear light ``(H, W, 3)``."""
        layers = [int(n) + self.lowest for n in np.flatnonzero(np.diff(self.first))[::-1]]
        self._lay_side([layer for layer in layers if layer > 0])
        if 0 in layers:
            half, _, box, wanted = self._continued(0)
            lay_sharp(self.light, self.number, half, box, wanted, self.corner, self.out, self.total, self.passed)
        if self.passed.max() > _NOTHING:
            self._lay_side([layer for layer in layers if layer < 0])
        divide(self.out, self.total, _LEAST_TOTAL)
        return self.out

    def _lay_side(self, layers: list[int]) -> None:
        """Lay the layers of one side of the focus: what is seen of each, and after those linked to it what is not."""
        waiting = list(layers)
        for layer in layers:
            while waiting[0] - layer > _LINKED:
                self._lay_hidden(waiting.pop(0))
            self._lay_own(layer)
        for layer in waiting:
            self._lay_hidden(layer)
        self.passed *= 1 - self.cover
        self.cover[:] = 0
        self.last[:] = _NONE

    def _lay_own(self, layer: int) -> None:
        """Lay what is seen of a layer."""
        own = self.place[self.first[layer - self.lowest] : self.first[layer - self.lowest + 1]]
        reach, target = self._target(layer)
        scatter_own(self.light, self.radius, own, *target)
        self._lay(layer, _LINKED, reach)

    def _lay_hidden(self, layer: int) -> None:
        """Lay what nearer layers hide of a layer where the lens sees it past them."""
        half, weight, box, wanted = self._continued(layer)
        if wanted.any():
            reach, target = self._target(layer)
            span = np.minimum(_ends_px(layer), np.float32(self.largest_px))
            scatter_hidden(self.number, layer, half, weight, box, wanted, span, *target)
            self._lay(layer, -1, reach)

    def _lay(self, layer: int, linked: int, reach: np.ndarray) -> None:
        so_far = self.out, self.total, self.passed, self.cover, self.last
        lay_behind(self.canvas, *so_far, layer, linked, self.left, self.right, reach, self.corner)

    def _target(self, layer: int) -> tuple[np.ndarray, tuple]:
        """Rows and columns that a layer's disks reach, and the last arguments of `scatter_own`."""
        limits = zip(self.reach_per_px, self.corner, strict=True)
        reach = [min(math.ceil(_ends_px(layer)[1] * per_px), int(limit)) for per_px, limit in limits]
        sides = zip(self.corner, self.size, reach, strict=True)
        bounds = [end for start, length, by in sides for end in (start - by, start + length + by)]
        places = (self.up * self.stride + self.aside) * 4, self.stride * 4
        geometry = np.array([*places, self.steps, *bounds], dtype=np.int64)
        table = self.through if layer > 0 else self.upright
        return np.array(reach, dtype=np.int64), (table, self.canvas.reshape(-1), geometry, self.left, self.right)

    def _continued(self, layer: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Continue a layer behind nearer ones.

        Returns:
            Cells ``(h, w, 5)`` of 2x2 pixels, how far each was known ``(h, w)``, their first row and column ``(2,)``,
            and the tiles in which they can be seen; no cells where there are none.
        """
        nowhere = np.zeros((0, 0, 5), np.float32), np.zeros((0, 0), np.float32), np.zeros(2, np.int64)
        jumps = (self.jump_px >= 0) & self._widened(self.present[layer - self.lowest], TILE_PX)
        wanted = np.zeros_like(jumps)
        if not jumps.any():
            return *nowhere, wanted
        radius_px = _ends_px(layer)[1] if layer else 0.0
        zone = self._widened(jumps, radius_px + self.jump_px[jumps].max())
        mark_seen(self.passed, self.cover, _NOTHING, self._widened(zone, radius_px), wanted, self.corner)
        wanted = self._widened(wanted, radius_px) & zone & (self.nearest > layer)
        if not wanted.any():
            return *nowhere, wanted
        sides = [np.flatnonzero(wanted.any(axis=axis)) for axis in (1, 0)]
        box = [
            (max(side[0] * TILE_PX - _AROUND_PX, 0), min((side[-1] + 1) * TILE_PX + _AROUND_PX, length))
            for side, length in zip(sides, self.number.shape, strict=True)
        ]
        cells = tuple((stop - start + 1) // 2 for start, stop in box)
        half, weight = np.empty((*cells, 5), dtype=np.float32), np.empty(cells, dtype=np.float32)
        corner = np.array([start for start, _ in box], dtype=np.int64)
        take_own(self.light, self.radius, self.number, layer, corner, half, weight)
        _continue(half, weight)
        return half, weight, corner, wanted

    def _widened(self, tiles: np.ndarray, reach_px: float) -> np.ndarray:
        """Tiles in reach of some tiles."""
        by = [math.ceil(reach_px * per_px / TILE_PX) for per_px in self.reach_per_px]
        return ndimage.maximum_filter(tiles, size=[2 * count + 1 for count in by], mode="constant")


def _ends_px(layer: int) -> np.ndarray:
    """Least and largest radius of a layer out of focus, float32 ``(2,)``."""
    return np.float32(IDENTITY_RADIUS_PX * _RATIO ** np.array([abs(layer) - 1, abs(layer)]))


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
