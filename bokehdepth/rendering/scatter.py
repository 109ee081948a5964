"""Defocus by scattering: every pixel spreads its light over its own blur disk, without occlusion.

`span_scatter` is the exact linear operator, in time O(r) a pixel (row differences and one sum along the rows, see
`aperture.py`) where a loop over the disk takes O(r^2). `scatter_bokeh` makes a picture of it: in linear light, divided
by what a white picture would give, so that no seams or dark borders appear where the radius changes.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np

from bokehdepth.errors import InputError
from bokehdepth.rendering.aperture import DISK, Aperture, SpanTable, span_table

GAMMA = 2.2
Border = Literal["continued", "lost"]
_CHANNELS = 4
_BAND_ROWS = 64  # the same whatever the number of threads, so that sums are made in one order


def check_radius(radius_px: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Check the blur radius of every pixel.

    Args:
        radius_px: Radius of each pixel in pixels.
        size: ``(H, W)`` that it must have.

    Returns:
        float32 ``(H, W)``, C-contiguous.

    Raises:
        InputError: If it is no floating-point array of this size, or has negative or not finite values.
    """
    if not (isinstance(radius_px, np.ndarray) and radius_px.dtype.kind == "f" and radius_px.shape == size):
        described = f"{radius_px.dtype} {radius_px.shape}" if isinstance(radius_px, np.ndarray) else type(radius_px)
        raise InputError(f"radius_px is {described}, wanted a floating-point array {size}")
    low, high = radius_px.min(), radius_px.max()
    if not (low >= 0 and np.isfinite(high)):
        raise InputError(f"radius_px spans [{low:g}, {high:g}], wanted finite pixels, 0 or more")
    return np.ascontiguousarray(radius_px, dtype=np.float32)


def span_scatter(
    values: np.ndarray,
    radius_px: np.ndarray,
    *,
    aperture: Aperture = DISK,
    border: Border = "continued",
    threads: int | None = 1,
) -> np.ndarray:
    """Spread every pixel over its own blur kernel and add up: a linear operator that keeps the sum of the values.

    Args:
        values: float32 ``(H, W, C)``, finite: light, or light times opacity and opacity.
        radius_px: Blur radius of each pixel, floating point ``(H, W)``, 0 to 512; up to 0.5 px a pixel stays itself.
            One radius for all pixels is exact; different ones are rounded as `span_table` says.
        aperture: Shape of the kernels.
        border: What lies beyond the frame: ``"continued"`` its edge pixels, with their radius; ``"lost"`` nothing, and
            what spreads beyond it is lost.
        threads: CPU threads; None takes all that this process may use. The result does not depend on it.

    Returns:
        float32 ``(H, W, C)``.

    Raises:
        InputError: If an array has another type or shape, values that are not finite or radii out of range, or if
            ``border`` or ``threads`` is not one of the above.
    """
    if not (isinstance(values, np.ndarray) and values.dtype == np.float32 and values.ndim == 3 and values.size):
        described = f"{values.dtype} {values.shape}" if isinstance(values, np.ndarray) else type(values).__name__
        raise InputError(f"values is {described}, wanted a float32 array (H, W, C) that is not empty")
    if not np.isfinite(values).all():
        raise InputError("values has values that are not finite, wanted finite light")
    radius = check_radius(radius_px, values.shape[:2])
    if border not in ("continued", "lost"):
        raise InputError(f"border is {border!r}, wanted 'continued' or 'lost'")
    if threads is not None and not (isinstance(threads, int) and threads >= 1):
        raise InputError(f"threads is {threads!r}, wanted a whole number, 1 or more, or None")
    table = span_table(aperture, float(radius.min()), float(radius.max()))
    inside = (slice(None), slice(None))
    if border == "continued":
        pad = [(table.half_height_px,) * 2, (table.half_width_px,) * 2]
        inside = tuple(slice(before, before + length) for (before, _), length in zip(pad, radius.shape, strict=True))
        values, radius = np.pad(values, [*pad, (0, 0)], mode="edge"), np.pad(radius, pad, mode="edge")
    threads = threads or _usable_cores()
    channels = values.shape[2]
    parts = []
    for start in range(0, channels, _CHANNELS):
        part = values[..., start : start + _CHANNELS]
        if part.shape[2] < _CHANNELS:
            part = np.pad(part, ((0, 0), (0, 0), (0, _CHANNELS - part.shape[2])))
        parts.append(_scattered(np.ascontiguousarray(part), radius, table, threads)[inside])
    return np.ascontiguousarray(np.concatenate(parts, axis=2)[..., :channels] if channels != _CHANNELS else parts[0])


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def kernel_numbers(radius_px: np.ndarray, table: SpanTable) -> np.ndarray:
    """Number of the kernel in a table for each radius: int32, of the shape of ``radius_px``."""
    return np.rint(radius_px * np.float32(table.steps_per_px)).astype(np.int32)


def _scattered(values: np.ndarray, radius: np.ndarray, table: SpanTable, threads: int) -> np.ndarray:
    """Scatter four channels ``(H, W, 4)``; what leaves the frame is lost."""
    from bokehdepth.rendering._scatter_numba import add_sums, scatter_band

    height, width = radius.shape
    kernel = kernel_numbers(radius, table)
    up, aside = table.half_height_px, table.half_width_px
    stride = width + 2 * aside + 2
    offset = ((table.row * stride + table.column) * _CHANNELS).astype(np.int32)
    flat = values.reshape(-1)
    start = np.array([(up * stride + aside) * _CHANNELS, stride * _CHANNELS], dtype=np.int64)
    rows = max(_BAND_ROWS, 2 * up)

    def band(top: int) -> np.ndarray:
        bottom = min(top + rows, height)
        canvas = np.zeros((bottom - top + 2 * up) * stride * _CHANNELS, dtype=np.float32)
        scatter_band(flat, kernel, top, bottom, table.first, offset, table.pair, canvas, start)
        return canvas.reshape(-1, stride, _CHANNELS)

    out = np.zeros((height, width, _CHANNELS), dtype=np.float32)
    tops = range(0, height, rows)
    if threads == 1 or len(tops) == 1:
        for top in tops:
            add_sums(band(top), out, top - up, aside)
    else:
        with ThreadPoolExecutor(threads) as pool:
            for top, canvas in zip(tops, pool.map(band, tops), strict=True):
                add_sums(canvas, out, top - up, aside)
    return out


def scatter_bokeh(
    image: np.ndarray,
    radius_px: np.ndarray,
    *,
    aperture: Aperture = DISK,
    gamma: float = GAMMA,
    threads: int | None = 1,
) -> np.ndarray:
    """Blur a picture with a radius for each pixel, without occlusion: everything mixes with everything in reach.

    Args:
        image: Display values in [0, 1], float32 ``(H, W, 3)``.
        radius_px: Blur radius of each pixel, floating point ``(H, W)``, 0 to 512 (Eq. 15, 26).
        aperture: Shape of the blur.
        gamma: The light is ``image ** gamma``.
        threads: As in `span_scatter`.

    Returns:
        Display values, float32 ``(H, W, 3)``. A constant picture stays constant; without blur it is ``image`` itself.

    Raises:
        InputError: If ``image`` has another type, shape or range, ``gamma`` is not above 0, or as `span_scatter` says.
    """
    image = check_image(image)
    radius = check_radius(radius_px, image.shape[:2])
    if not (np.isfinite(gamma) and gamma > 0):
        raise InputError(f"gamma is {gamma!r}, wanted a finite number above 0")
    if radius.max() <= 0.5:
        return image.copy()
    light = np.concatenate([to_light(image, gamma), np.ones_like(image[..., :1])], axis=2)
    spread = span_scatter(light, radius, aperture=aperture, border="lost", threads=threads)
    # Each pixel reaches itself, so the last channel is nowhere 0.
    return from_light(spread[..., :3] / spread[..., 3:], gamma)


def to_light(image: np.ndarray, gamma: float = GAMMA) -> np.ndarray:
    """Turn display values into linear light, ``image ** gamma``.

    Args:
        image: float32, values 0 or more.
        gamma: Exponent, above 0.

    Returns:
        float32, of the shape of ``image``.
    """
    return image ** np.float32(gamma)


def from_light(light: np.ndarray, gamma: float = GAMMA) -> np.ndarray:
    """Turn linear light into display values in [0, 1]; what is brighter than white is white.

    Args:
        light: float32, out of [0, 1] by rounding or where light is added to a picture.
        gamma: As in `to_light`.

    Returns:
        float32, of the shape of ``light``.
    """
    return np.clip(light, 0, 1) ** np.float32(1 / gamma)


def check_image(image: np.ndarray, name: str = "image") -> np.ndarray:
    """Check a picture of display values.

    Args:
        image: The picture.
        name: How the argument is called where the caller got it.

    Returns:
        The same array.

    Raises:
        InputError: If it is not float32 ``(H, W, 3)`` with values in [0, 1].
    """
    if not (
        isinstance(image, np.ndarray)
        and image.dtype == np.float32
        and image.ndim == 3
        and image.shape[2] == 3
        and image.size
    ):
        described = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise InputError(f"{name} is {described}, wanted a float32 array (H, W, 3)")
    low, high = image.min(), image.max()
    if not (low >= 0 and high <= 1):
        raise InputError(f"{name} spans [{low:g}, {high:g}], wanted display values in [0, 1]")
    return image
