"""Checks that the measures share. NumPy only."""

import numpy as np

from bokehdepth.errors import InputError


def checked_mask(name: str, mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return ``mask`` if it is a bool array of ``shape`` with a true pixel, else raise ``InputError``."""
    if not (isinstance(mask, np.ndarray) and mask.dtype == np.bool_ and mask.shape == shape):
        described = f"{mask.dtype} {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
        raise InputError(f"{name} is {described}, wanted a bool array {shape}")
    if not mask.any():
        raise InputError(f"{name} is false everywhere, wanted at least one pixel that counts")
    return mask


def checked_float(name: str, array: np.ndarray, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """Return ``array`` if it is floating point (and of ``shape``), else raise ``InputError``."""
    is_float = isinstance(array, np.ndarray) and np.issubdtype(array.dtype, np.floating)
    if not is_float or (shape is not None and array.shape != shape):
        described = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        wanted = "" if shape is None else f" {shape}"
        raise InputError(f"{name} is {described}, wanted a floating-point array{wanted}")
    return array


def valid_pairs(
    prediction: np.ndarray, target: np.ndarray, valid: np.ndarray | None, names: tuple[str, str]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the prediction and the target where both count, float64 ``(n,)`` each.

    Args:
        prediction: Float ``(H, W)``.
        target: Float ``(H, W)``.
        valid: Bool ``(H, W)``; None: where the target is finite and above 0.
        names: How the caller's arguments are called, prediction first.

    Raises:
        InputError: If shapes or types differ from the above, no pixel counts, or a value that counts is not finite
            and above 0.
    """
    checked_float(names[1], target)
    checked_float(names[0], prediction, target.shape)
    if valid is None:
        valid = np.isfinite(target) & (target > 0)
        if not valid.any():
            raise InputError(f"{names[1]} {target.shape} has no finite value above 0, wanted at least one")
    checked_mask("valid", valid, target.shape)
    pair = []
    for name, array in zip(names, (prediction, target), strict=True):
        values = array[valid].astype(np.float64)
        bad = ~(np.isfinite(values) & (values > 0))
        if bad.any():
            raise InputError(
                f"{name} is {values[bad][0]:g} at {bad.sum()} pixels that count, wanted finite and above 0"
            )
        pair.append(values)
    return pair[0], pair[1]


def checked_pictures(sharp: np.ndarray, **others: np.ndarray) -> None:
    """Raise ``InputError`` unless all are float ``(H, W, 3)`` of one shape with display values in [0, 1]."""
    checked_float("sharp", sharp)
    if sharp.ndim != 3 or sharp.shape[2] != 3 or sharp.size == 0:
        raise InputError(f"sharp has the shape {sharp.shape}, wanted (H, W, 3)")
    for name, picture in {"sharp": sharp, **others}.items():
        checked_float(name, picture, sharp.shape)
        if not (np.isfinite(picture).all() and picture.min() >= 0 and picture.max() <= 1):
            raise InputError(f"{name} has values outside [0, 1], wanted display values in [0, 1]")
