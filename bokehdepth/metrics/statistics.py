"""How sure a table is: bootstrap intervals clustered by scene, and paired tests between methods.

Pictures of one scene are not independent, so scenes are drawn, never pictures. Both tools are deterministic.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bokehdepth.errors import InputError

_EXACT_CLUSTERS = 12
"""Up to so many scenes every one of the 2^n sign patterns is counted."""
_PATTERNS = 9999


@dataclass(frozen=True)
class Interval:
    """A mean over pictures with its bootstrap interval.

    Attributes:
        mean: Over all pictures.
        low: Lower end.
        high: Upper end; both equal the mean where there is one scene.
        pictures: How many.
        scenes: How many clusters.
    """

    mean: float
    low: float
    high: float
    pictures: int
    scenes: int


@dataclass(frozen=True)
class PairedTest:
    """One method against another on the same pictures.

    Attributes:
        difference: Mean of the first minus the second, with its interval.
        p_value: Two-sided, of the sign-flip test over scenes.
    """

    difference: Interval
    p_value: float


def _sums(values: Sequence[float], scenes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Sum and number of the values of each scene, ``(C,)`` each."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) == 0 or len(array) != len(scenes):
        raise InputError(
            f"values has the shape {array.shape} and scenes {len(scenes)} entries, wanted one of each (n,)"
        )
    if not np.isfinite(array).all():
        raise InputError(f"values has {int((~np.isfinite(array)).sum())} entries that are not finite, wanted none")
    _, index = np.unique(np.asarray([str(scene) for scene in scenes]), return_inverse=True)
    return np.bincount(index, weights=array), np.bincount(index)


def cluster_interval(
    values: Sequence[float], scenes: Sequence[str], *, level: float = 0.95, samples: int = 2000, seed: int = 0
) -> Interval:
    """Mean of a measure with the percentile interval of a bootstrap over scenes.

    Args:
        values: One number for each picture ``(n,)``, finite.
        scenes: The scene of each picture ``(n,)``.
        level: Share that the interval covers, in (0, 1).
        samples: Bootstrap samples, each of as many scenes as there are, drawn with replacement.
        seed: Of the draws.

    Returns:
        The mean over pictures and its interval.

    Raises:
        InputError: If lengths differ, there is no value, one is not finite, or an option is out of range.
    """
    if not 0 < level < 1 or samples < 1:
        raise InputError(f"level is {level!r} and samples {samples!r}, wanted a share in (0, 1) and 1 or more")
    sums, counts = _sums(values, scenes)
    drawn = np.random.default_rng(seed).integers(len(sums), size=(samples, len(sums)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(sums.sum() / counts.sum()), float(low), float(high), int(counts.sum()), len(sums))


def paired_test(
    first: Sequence[float], second: Sequence[float], scenes: Sequence[str], *, seed: int = 0
) -> PairedTest:
    """Compare two methods picture by picture.

    If neither method were better, the sign of every scene's difference would be a coin's. The p-value is the share of
    sign patterns whose total is at least as far from 0 as the one seen: all patterns up to 12 scenes, 9999 drawn ones
    and the one seen above that.

    Args:
        first: One number for each picture ``(n,)``, finite.
        second: The other method's, in the same order.
        scenes: The scene of each picture ``(n,)``.
        seed: Of the draws.

    Returns:
        The difference and the p-value.

    Raises:
        InputError: If lengths differ, there is no value, or one is not finite.
    """
    if len(first) != len(second):
        raise InputError(f"first has {len(first)} entries and second {len(second)}, wanted equal numbers")
    difference = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    sums, _ = _sums(difference, scenes)
    if len(sums) <= _EXACT_CLUSTERS:
        patterns = np.arange(2 ** len(sums))[:, None] >> np.arange(len(sums)) & 1
        extra = 0
    else:
        patterns = np.random.default_rng(seed).integers(2, size=(_PATTERNS, len(sums)))
        extra = 1
    totals = np.abs((patterns * 2 - 1) @ sums)
    # Sums in another order differ in their last digits; a pattern that ties with the one seen must count.
    as_far = int((totals >= abs(sums.sum()) - 1e-12 * np.abs(sums).sum()).sum())
    p_value = (as_far + extra) / (len(patterns) + extra)
    return PairedTest(cluster_interval(difference, scenes, seed=seed), float(p_value))
