"""The shape of the aperture, its blur kernel at any radius, and the kernel as differences along rows.

A kernel is a small picture: the share of a point's light that each pixel receives. Along a row it is zero, rises,
stays, falls and is zero again, so its differences from pixel to pixel are few: a disk of radius r has about 12 r of
them against 3.1 r^2 pixels. `span_table` lists these differences in pairs of neighbours for every radius of a grid;
adding them to a canvas and summing the canvas along its rows spreads the kernel (`scatter.py`). numpy only.
"""

import math
import reprlib
import sys
from dataclasses import dataclass, replace
from functools import lru_cache
from numbers import Real

import numpy as np

from bokehdepth.errors import InputError
from bokehdepth.rendering.disk import disk_kernel

MAX_RADIUS_PX = 512
MAX_BLADES = 32
_STRIPS = 16  # sub-rows of a pixel in which a kernel without a closed form is integrated
_ROUNDING = 1e-9  # of a strip of a pixel; less is what sums leave of nothing
_MERGED_FROM_PX = 5.0  # below, an edge is as wide as the disk's structure and stays exact
_GRID_PX = 4  # tables grow in steps of this radius, so that few different ones are made


@dataclass(frozen=True)
class Aperture:
    """The shape of a lens opening. Whatever the shape, it has the area of the disk that it stands for.

    Attributes:
        blades: 0 for a disk, 3 or more for a regular polygon with so many straight sides.
        rotation_deg: turns the shape, counter-clockwise in degrees; without effect on a round disk.
        squeeze: height over width of the blur, more than 0: 2 is a two-fold anamorphic lens, 1 a spherical one.

    Raises:
        InputError: If a value is out of range.
    """

    blades: int = 0
    rotation_deg: float = 0.0
    squeeze: float = 1.0

    def __post_init__(self) -> None:
        if (
            isinstance(self.blades, bool)
            or not isinstance(self.blades, int)
            or not (self.blades == 0 or 3 <= self.blades <= MAX_BLADES)
        ):
            raise InputError(
                f"blades is {reprlib.repr(self.blades)}, wanted 0 for a disk or a whole number from 3 to {MAX_BLADES}"
            )
        if (
            isinstance(self.rotation_deg, bool)
            or not isinstance(self.rotation_deg, Real)
            or not abs(self.rotation_deg) <= sys.float_info.max
        ):
            raise InputError(f"rotation_deg is {reprlib.repr(self.rotation_deg)}, wanted a finite angle in degrees")
        if isinstance(self.squeeze, bool) or not isinstance(self.squeeze, Real) or not 0.25 <= self.squeeze <= 4:
            raise InputError(
                f"squeeze is {reprlib.repr(self.squeeze)}, wanted height over width of the blur from 0.25 to 4"
            )

    @property
    def is_round(self) -> bool:
        """Whether the shape is a circular disk."""
        return self.blades == 0 and self.squeeze == 1

    def mirrored(self) -> "Aperture":
        """The same opening seen through its centre: what blurs things in front of the focus."""
        return self if self.blades % 2 == 0 else replace(self, rotation_deg=self.rotation_deg + 180)

    def _corners(self) -> np.ndarray:
        """Corners of the polygon of radius 1, ``(n, 2)`` as (x, y), y down; of an ellipse its four ends."""
        count = self.blades or 4
        angle = np.deg2rad(self.rotation_deg if self.blades else 0) + np.pi * (2 * np.arange(count) / count + 0.5)
        reach = math.sqrt(2 * math.pi / (count * math.sin(2 * math.pi / count))) if self.blades else 1.0
        width, height = reach / math.sqrt(self.squeeze), reach * math.sqrt(self.squeeze)
        return np.stack([width * np.cos(angle), -height * np.sin(angle)], axis=1)

    def _chords(self, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Left and right end of the shape of radius 1 at heights ``(n,)``; not left < right beyond it."""
        corners = self._corners()
        if self.blades == 0:
            width, height = np.abs(corners).max(axis=0)
            half = width * np.sqrt(np.maximum(1 - (y / height) ** 2, 0))
            return -half, half
        left, right = np.full(y.size, np.inf), np.full(y.size, -np.inf)
        for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            crossed = (np.minimum(y0, y1) <= y) & (y < np.maximum(y0, y1))
            if crossed.any():
                x = x0 + (x1 - x0) * (y[crossed] - y0) / (y1 - y0)
                left[crossed], right[crossed] = np.minimum(left[crossed], x), np.maximum(right[crossed], x)
        return left, right

    def kernel(self, radius_px: float) -> np.ndarray:
        """Make the blur kernel of one radius.

        Args:
            radius_px: Radius of the disk of equal area in pixels (Eq. 15, 26), from 0 to 512.

        Returns:
            float64 ``(2n+1, 2m+1)``, its sum 1, each pixel weighted by the area of the shape inside it: exact for a
            disk; for others exact along x and by the middles of 16 strips of a pixel along y. Up to half a pixel of
            radius the blur is the identity, ``[[1]]``.

        Raises:
            InputError: If ``radius_px`` is out of range.
        """
        if not 0 <= radius_px <= MAX_RADIUS_PX:
            raise InputError(f"radius_px is {radius_px!r}, wanted pixels from 0 to {MAX_RADIUS_PX}")
        if self.is_round or radius_px <= 0.5:
            return disk_kernel(radius_px).astype(np.float64)
        aside, up = (max(math.ceil(end * radius_px - 0.5), 0) for end in np.abs(self._corners()).max(axis=0))
        y = (np.arange((2 * up + 1) * _STRIPS) + 0.5) / _STRIPS - up - 0.5
        ends = self._chords(y / radius_px)
        inside = ends[0] < ends[1]
        rows, width = np.flatnonzero(inside) // _STRIPS, 2 * aside + 1
        # Along a strip the covered share of the pixels changes at its two ends alone: add up where, then sum the rows.
        change = np.zeros((2 * up + 1) * (width + 2))
        for end, sign in zip(ends, (1, -1), strict=True):
            place = np.clip(end[inside] * radius_px + aside + 0.5, 0, width)
            whole = place.astype(int)
            at = rows * (width + 2) + whole
            for where, share in ((at, 1 - place + whole), (at + 1, place - whole)):
                change += sign * np.bincount(where, share, change.size)
        kernel = np.cumsum(change.reshape(-1, width + 2), axis=1)[:, :width]
        kernel[kernel < _ROUNDING] = 0
        return kernel / kernel.sum()


DISK = Aperture()


@dataclass(frozen=True, eq=False)
class SpanTable:
    """Kernels of many radii as pairs of neighbouring differences along rows.

    The kernel with number k has the pairs ``first[k]`` to ``first[k + 1]``: at ``row``, ``column`` and the column
    after, relative to the source, the differences ``pair``.

    Attributes:
        steps_per_px: Radii on the grid for each pixel: number k is the radius k / steps_per_px. 0: one exact radius.
        first: int32 ``(R + 1,)``.
        row: int32 ``(n,)``.
        column: int32 ``(n,)``.
        pair: float32 ``(n, 2)``.
        half_height_px: Largest row.
        half_width_px: Largest column of a kernel's pixels; differences reach one further.
    """

    steps_per_px: int
    first: np.ndarray
    row: np.ndarray
    column: np.ndarray
    pair: np.ndarray
    half_height_px: int
    half_width_px: int


def radii_per_px(highest_px: float) -> int:
    """Radii that a table up to ``highest_px``, at most 512 px, has for each pixel of it: 16, from 64 px on less."""
    steps = 16
    while highest_px > 1024 / steps and steps > 1:
        steps //= 2
    return steps


def span_table(aperture: Aperture, lowest_px: float, highest_px: float) -> SpanTable:
    """Make (or find again) the table for all radii between two.

    One radius has a table of its own and is exact. Otherwise radii are rounded to 1/16 px (from 64 px on 1/8, from 128
    on 1/4, from 256 on 1/2), and above 5 px an edge of three differences is written as two with the same sum and the
    same centre: the kernels then differ from `Aperture.kernel` by at most 0.03 in the sum of absolute differences.

    Args:
        aperture: The shape.
        lowest_px: Smallest radius that is needed, 0 or more.
        highest_px: Largest radius that is needed, at most 512.

    Returns:
        The table.

    Raises:
        InputError: If ``highest_px`` is more than 512 px.
    """
    if not 0 <= lowest_px <= highest_px <= MAX_RADIUS_PX:
        raise InputError(f"radius_px spans [{lowest_px:g}, {highest_px:g}], wanted pixels from 0 to {MAX_RADIUS_PX}")
    if lowest_px == highest_px:
        return _table(aperture, (float(highest_px),), 0)
    steps = radii_per_px(highest_px)
    top_px = min(_GRID_PX * math.ceil(highest_px / _GRID_PX), MAX_RADIUS_PX)
    return (_round_table if aperture == DISK else _other_table)(aperture, top_px, steps)


def _grid_table(aperture: Aperture, top_px: int, steps: int) -> SpanTable:
    return _table.__wrapped__(aperture, tuple(np.arange(top_px * steps + 1) / steps), steps)


# A table can have 25 MB. Few round ones differ; of others as many are kept as a caller who turns one apart needs.
_round_table = lru_cache(maxsize=32)(_grid_table)
_other_table = lru_cache(maxsize=6)(_grid_table)


@lru_cache(maxsize=256)
def _table(aperture: Aperture, radii_px: tuple[float, ...], steps: int) -> SpanTable:
    first, rows, columns, pairs, half = [0], [], [], [], np.zeros(2, dtype=int)
    for radius in radii_px:
        kernel = aperture.kernel(radius)
        half = np.maximum(half, np.array(kernel.shape) // 2)
        differences = np.diff(kernel, axis=1, prepend=0, append=0)
        differences[np.abs(differences) < 1e-9 * kernel.max()] = 0
        if steps and radius > _MERGED_FROM_PX:
            _merge(differences)
        row, column, pair = _in_pairs(differences)
        rows.append(row - kernel.shape[0] // 2)
        columns.append(column - kernel.shape[1] // 2)
        pairs.append(pair)
        first.append(first[-1] + row.size)
    return SpanTable(
        steps_per_px=steps,
        first=np.array(first, dtype=np.int32),
        row=np.concatenate(rows).astype(np.int32),
        column=np.concatenate(columns).astype(np.int32),
        pair=np.concatenate(pairs).astype(np.float32),
        half_height_px=int(half[0]),
        half_width_px=int(half[1]),
    )


def _merge(differences: np.ndarray) -> None:
    """Write edges of three differences of one sign as two with their sum and centre, in place, ``(rows, columns)``."""
    for sign in (1, -1):
        part = np.where(np.sign(differences) == sign, differences, 0)
        start = (part != 0).argmax(axis=1)
        rows = np.flatnonzero((part != 0).sum(axis=1) == 3)
        rows = rows[(part[rows, np.minimum(start[rows] + 2, part.shape[1] - 1)] != 0)]
        first = start[rows]
        edge = part[rows[:, None], first[:, None] + np.arange(3)]
        centre = edge @ np.array([0.0, 1.0, 2.0]) / edge.sum(axis=1)
        low = centre.astype(int)  # 0 or 1: the centre of three lies between the outer two
        high_share = edge.sum(axis=1) * (centre - low)
        differences[rows[:, None], first[:, None] + np.arange(3)] = 0
        differences[rows, first + low] = edge.sum(axis=1) - high_share
        differences[rows, first + low + 1] = high_share


def _in_pairs(differences: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """List all differences that are not 0, two neighbours at a time: rows, first columns and ``(n, 2)`` values."""
    is_first = np.zeros(differences.shape, dtype=bool)
    before = np.zeros(differences.shape[0], dtype=bool)
    for column in range(differences.shape[1]):
        before = (differences[:, column] != 0) & ~before
        is_first[:, column] = before
    rows, columns = np.nonzero(is_first)
    widened = np.pad(differences, ((0, 0), (0, 1)))
    return rows, columns, np.stack([widened[rows, columns], widened[rows, columns + 1]], axis=1)
