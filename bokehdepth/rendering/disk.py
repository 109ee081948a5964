"""The blur disk of a defocused lens: its kernel, and a whole picture blurred by one disk.

Units are pixels of the picture that is blurred. The radius is the one of the paper's Eq. 15 and 26 (half the circle of
confusion), so a kernel here is what a point at that radius becomes. No torch import.
"""

import numpy as np
from scipy.signal import oaconvolve

from bokehdepth.errors import InputError


def _checked_radius(radius_px: float) -> float:
    radius = float(radius_px)
    if not (np.isfinite(radius) and radius >= 0):
        raise InputError(f"radius_px is {radius_px!r}, wanted a finite number of pixels, 0 or more")
    return radius


def _quadrant_coverage(radius: float, half: int) -> np.ndarray:
    """Exact area of the disk in each cell of one quadrant, whose first row and column are half cells.

    Over a cell ``[x0, x1] x [y0, y1]`` the area is the integral over x of ``clip(sqrt(r^2 - x^2), y0, y1) - y0``. The
    arc falls with x: the integral has a full part up to ``x_full``, an arc part up to ``x_arc``, and nothing beyond.

    Args:
        radius: Disk radius in pixels, more than 0.5.
        half: Number of whole cells beside the half cell.

    Returns:
        Areas in square pixels, float64 ``(half + 1, half + 1)``.
    """
    edges = np.concatenate([[0.0], np.arange(half + 1) + 0.5])
    low, high = edges[:-1], edges[1:]
    chord = np.sqrt(np.maximum(radius**2 - edges**2, 0.0))  # half-width of the disk at each cell border
    x_full = np.clip(chord[1:, None], low, high)
    x_arc = np.clip(chord[:-1, None], low, high)

    def arc_integral(x: np.ndarray) -> np.ndarray:
        inside = np.minimum(x, radius)
        return 0.5 * (inside * np.sqrt(radius**2 - inside**2) + radius**2 * np.arcsin(inside / radius))

    full = (high - low)[:, None] * (x_full - low)
    arc = arc_integral(x_arc) - arc_integral(x_full) - low[:, None] * (x_arc - x_full)
    return full + arc


def disk_kernel(radius_px: float) -> np.ndarray:
    """Make the kernel of a uniform blur disk, each pixel weighted by the exact area of the disk inside it.

    The disk is centred on the middle pixel. Up to half a pixel of radius it lies inside that pixel, and the kernel is
    ``[[1]]``: the blur is the identity.

    Args:
        radius_px: Disk radius in pixels, 0 or more (Eq. 15, 26).

    Returns:
        float32 ``(2n+1, 2n+1)`` with ``n = ceil(radius_px - 0.5)``, symmetric, its sum 1.

    Raises:
        InputError: If ``radius_px`` is negative or not finite.
    """
    radius = _checked_radius(radius_px)
    half = max(int(np.ceil(radius - 0.5)), 0)
    if half == 0:
        return np.ones((1, 1), dtype=np.float32)
    quadrant = _quadrant_coverage(radius, half)
    quadrant[0, :] *= 2.0  # the half cells on the axes meet their mirror images
    quadrant[:, 0] *= 2.0
    index = np.abs(np.arange(-half, half + 1))
    kernel = quadrant[np.ix_(index, index)]
    return (kernel / kernel.sum()).astype(np.float32)


def disk_blur(image: np.ndarray, radius_px: float, *, gamma: float = 1.0) -> np.ndarray:
    """Blur a whole picture with one disk, its edge pixels continued outwards (no darkening at the border).

    Args:
        image: float ``(H, W)`` or ``(H, W, C)``, finite.
        radius_px: Disk radius in pixels, 0 or more.
        gamma: The light is ``image ** gamma``; the blur is made in light and taken back. 1 blurs the values as they
            are; 2.2 is a display picture in [0, 1], which must then not be negative.

    Returns:
        Blurred picture, of the shape and floating-point type of ``image``; a copy of it up to 0.5 px of radius.

    Raises:
        InputError: If ``image`` is not floating point, has another number of axes, is empty or not finite, if it is
            negative with a ``gamma`` other than 1, or if ``radius_px`` or ``gamma`` is out of range.
    """
    if not (isinstance(image, np.ndarray) and image.dtype in (np.float32, np.float64) and image.ndim in (2, 3)):
        described = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise InputError(f"image is {described}, wanted a float32 or float64 array (H, W) or (H, W, C)")
    if image.size == 0 or not np.isfinite(image).all():
        raise InputError(f"image {image.shape} is empty or has values that are not finite, wanted finite pixels")
    if not (np.isfinite(gamma) and gamma > 0):
        raise InputError(f"gamma is {gamma!r}, wanted a finite number above 0")
    if gamma != 1 and image.min() < 0:
        raise InputError(f"image has the negative value {image.min():g}, wanted 0 or more for gamma {gamma:g}")
    kernel = disk_kernel(radius_px)
    half = kernel.shape[0] // 2
    if half == 0:
        return image.copy()

    light = image if gamma == 1 else image**gamma
    planes = light[..., None] if light.ndim == 2 else light
    padded = np.pad(planes, ((half, half), (half, half), (0, 0)), mode="edge")
    blurred = oaconvolve(padded, kernel[..., None].astype(image.dtype), mode="valid", axes=(0, 1))
    if image.min() >= 0:
        np.maximum(blurred, 0, out=blurred)  # the FFT rounds zeros to about -1e-8, which has no real root
    if gamma != 1:
        blurred = blurred ** (1 / gamma)
    return blurred.reshape(image.shape)
