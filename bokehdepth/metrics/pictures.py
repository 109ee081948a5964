"""Likeness of pictures: PSNR and SSIM (Eq. 35-37 of arXiv 2512.12425), and the way to linear light.

Section 10 of the paper measures on linear RGB; most others measure display values (sRGB). A measure here takes the
values as they are: what they are is the caller's to say, and every table's header says it.
"""

import numpy as np
from scipy import ndimage

from bokehdepth.errors import InputError
from bokehdepth.metrics.checks import checked_float, checked_mask


def psnr(
    image: np.ndarray, reference: np.ndarray, *, mask: np.ndarray | None = None, data_range: float = 1.0
) -> float:
    """Peak signal-to-noise ratio, ``10 log10(data_range^2 / mean((image - reference)^2))``.

    Args:
        image: Floating point ``(H, W)`` or ``(H, W, C)``, finite.
        reference: As ``image``.
        mask: Pixels that count, bool ``(H, W)``; None: all.
        data_range: The largest value minus the smallest that a picture can have.

    Returns:
        Decibels over all channels of the pixels that count; inf where they are equal.

    Raises:
        InputError: If shapes or types differ from the above, a value is not finite, no pixel counts, or
            ``data_range`` is not above 0.
    """
    checked_float("reference", reference)
    checked_float("image", image, reference.shape)
    if reference.ndim not in (2, 3) or reference.size == 0:
        raise InputError(f"reference has the shape {reference.shape}, wanted (H, W) or (H, W, C)")
    if not (np.isfinite(data_range) and data_range > 0):
        raise InputError(f"data_range is {data_range!r}, wanted a finite number above 0")
    squares = (image.astype(np.float64) - reference) ** 2
    if mask is not None:
        squares = squares[checked_mask("mask", mask, reference.shape[:2])]
    mean = float(np.mean(squares))
    if not np.isfinite(mean):
        raise InputError(
            "image or reference has values that are not finite at pixels that count, wanted finite pixels"
        )
    return float("inf") if mean == 0 else float(10 * np.log10(data_range**2 / mean))


def ssim(image: np.ndarray, reference: np.ndarray, *, data_range: float = 1.0) -> float:
    """Structural similarity (Eq. 37; Wang et al. 2004): Gaussian windows of 11 x 11 px with a deviation of 1.5 px.

    ``C1 = (0.01 L)^2`` and ``C2 = (0.03 L)^2`` with the data range L; variances are those of the window's weights.
    The mean is taken over all channels of the pixels whose window lies inside the picture.

    Args:
        image: Floating point ``(H, W)`` or ``(H, W, C)``, finite, at least 11 px on each side.
        reference: As ``image``.
        data_range: The largest value minus the smallest that a picture can have.

    Returns:
        At most 1, which equal pictures have.

    Raises:
        InputError: If shapes or types differ from the above, a value is not finite, or ``data_range`` is not above 0.
    """
    checked_float("reference", reference)
    checked_float("image", image, reference.shape)
    if reference.ndim not in (2, 3) or min(reference.shape[:2]) < 11 or reference.size == 0:
        raise InputError(f"reference has the shape {reference.shape}, wanted (H, W) or (H, W, C) of 11 px or more")
    if not (np.isfinite(data_range) and data_range > 0):
        raise InputError(f"data_range is {data_range!r}, wanted a finite number above 0")
    if not (np.isfinite(image).all() and np.isfinite(reference).all()):
        raise InputError("image or reference has values that are not finite, wanted finite pixels")
    x, y = image.astype(np.float64), reference.astype(np.float64)
    sigma = (1.5, 1.5, 0)[: x.ndim]

    def window_mean(values: np.ndarray) -> np.ndarray:
        return ndimage.gaussian_filter(values, sigma, radius=(5, 5, 0)[: x.ndim])[5:-5, 5:-5]

    mean_x, mean_y = window_mean(x), window_mean(y)
    variance_x = window_mean(x * x) - mean_x**2
    variance_y = window_mean(y * y) - mean_y**2
    covariance = window_mean(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    likeness = ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)) / (
        (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    )
    return float(likeness.mean())


def to_linear(image: np.ndarray, gamma: float = 2.2) -> np.ndarray:
    """Turn display values into linear light, ``image ** gamma``.

    Args:
        image: Floating point, any shape, 0 or more.
        gamma: Exponent of the display.

    Returns:
        Linear light, shape and type of ``image``.

    Raises:
        InputError: If ``image`` is not floating point, has a value that is negative or not finite, or ``gamma`` is not
            above 0.
    """
    checked_float("image", image)
    if not (np.isfinite(image).all() and (image >= 0).all()):
        raise InputError(f"image {image.shape} has values that are negative or not finite, wanted 0 or more")
    if not (np.isfinite(gamma) and gamma > 0):
        raise InputError(f"gamma is {gamma!r}, wanted a finite number above 0")
    return image ** image.dtype.type(gamma)
