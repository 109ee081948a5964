"""Likeness of pictures: PSNR and SSIM (Eq. 35-37 of arXiv 2512.12425), and the way to linear light.

Section 10 of the paper measures on linear RGB; most others measure display values (sRGB). A measure here takes the
values as they are: what they are is the caller's to say, and every table's header says it.
"""

import numpy as np
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from bokehdepth.errors import InputError
from bokehdepth.metrics.checks import checked_float


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

    """
    image, reference = image.astype(np.float64), reference.astype(np.float64)
    if mask is not None:
        image, reference = image[mask], reference[mask]
    with np.errstate(divide="ignore"):
        return float(peak_signal_noise_ratio(reference, image, data_range=data_range))


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

    """
    return float(
        structural_similarity(
            image.astype(np.float64),
            reference.astype(np.float64),
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=data_range,
            channel_axis=2 if image.ndim == 3 else None,
        )
    )


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
