"""Error measures of depth.

Depth is z-depth in metres, any equal shapes, usually ``(H, W)``. A pixel counts where ``valid`` is true; without
``valid``, where the target is finite and above 0. At a pixel that counts, prediction and target must be finite and
above 0: a prediction with holes is an error, never a smaller average.

Sources: Eigen et al. 2014 (AbsRel, SqRel, delta, RMSE, the scale-invariant log error) and section 10 of arXiv
2512.12425 (Eq. 40-43); boundary F1 is the contour score of Depth Pro (arXiv 2410.02073, section 3.3, and its published
code, `eval/boundary_metrics.py` of apple/ml-depth-pro).
"""

import numpy as np

from bokehdepth.errors import InputError
from bokehdepth.metrics.checks import checked_float, checked_mask, valid_pairs


def abs_rel(prediction_m: np.ndarray, target_m: np.ndarray, valid: np.ndarray | None = None) -> float:
    """Average the absolute error relative to the target: ``mean(|p - t| / t)``, without unit.

    Args:
        prediction_m: Predicted depth in metres, float ``(H, W)``.
        target_m: True depth in metres, float ``(H, W)``.
        valid: Pixels that count, bool ``(H, W)``; None: where the target is finite and above 0.

    Returns:
        The mean over the pixels that count; 0 is perfect.

    Raises:
        InputError: If shapes or types differ from the above, no pixel counts, or a depth that counts is not finite and
            above 0.
    """
    prediction, target = valid_pairs(prediction_m, target_m, valid, ("prediction_m", "target_m"))
    return float(np.mean(np.abs(prediction - target) / target))


def sq_rel(prediction_m: np.ndarray, target_m: np.ndarray, valid: np.ndarray | None = None) -> float:
    """Average the squared error over the target, ``mean((p - t)^2 / t)``, in metres (Eq. 42).

    Args:
        prediction_m: Predicted depth in metres, float ``(H, W)``.
        target_m: True depth in metres, float ``(H, W)``.
        valid: Pixels that count, as in ``abs_rel``.

    Returns:
        Metres; 0 is perfect.

    Raises:
        InputError: As ``abs_rel`` says.
    """
    prediction, target = valid_pairs(prediction_m, target_m, valid, ("prediction_m", "target_m"))
    return float(np.mean((prediction - target) ** 2 / target))


def delta(
    prediction_m: np.ndarray,
    target_m: np.ndarray,
    threshold: float = 1.25,
    power: int = 1,
    valid: np.ndarray | None = None,
) -> float:
    """Count the pixels within a factor of the truth: the share with ``max(p/t, t/p) < threshold ** power``.

    Args:
        prediction_m: Predicted depth in metres, float ``(H, W)``.
        target_m: True depth in metres, float ``(H, W)``.
        threshold: The factor, above 1.
        power: 1, 2, 3 for delta_1, delta_2, delta_3.
        valid: Pixels that count, as in ``abs_rel``.

    Returns:
        Share in [0, 1]; 1 is best.

    Raises:
        InputError: As ``abs_rel`` says, or if ``threshold`` is not above 1 or ``power`` not above 0.
    """
    if not (np.isfinite(threshold) and threshold > 1 and power > 0):
        raise InputError(f"threshold is {threshold!r} and power {power!r}, wanted above 1 and above 0")
    prediction, target = valid_pairs(prediction_m, target_m, valid, ("prediction_m", "target_m"))
    return float(np.mean(np.maximum(prediction / target, target / prediction) < threshold**power))


def rmse(prediction_m: np.ndarray, target_m: np.ndarray, valid: np.ndarray | None = None) -> float:
    """Take the root of the mean squared error, ``sqrt(mean((p - t)^2))``, in metres.

    Args:
        prediction_m: Predicted depth in metres, float ``(H, W)``.
        target_m: True depth in metres, float ``(H, W)``.
        valid: Pixels that count, as in ``abs_rel``.

    Returns:
        Metres.

    Raises:
        InputError: As ``abs_rel`` says.
    """
    prediction, target = valid_pairs(prediction_m, target_m, valid, ("prediction_m", "target_m"))
    return float(np.sqrt(np.mean((prediction - target) ** 2)))


def rmse_log(prediction_m: np.ndarray, target_m: np.ndarray, valid: np.ndarray | None = None) -> float:
    """Take the root of the mean squared log error, ``sqrt(mean((ln p - ln t)^2))``, without unit.

    Args:
        prediction_m: Predicted depth in metres, float ``(H, W)``.
        target_m: True depth in metres, float ``(H, W)``.
        valid: Pixels that count, as in ``abs_rel``.

    Returns:
        The error in natural-log units; 0 is perfect.

    Raises:
        InputError: As ``abs_rel`` says.
    """
    prediction, target = valid_pairs(prediction_m, target_m, valid, ("prediction_m", "target_m"))
    return float(np.sqrt(np.mean(np.log(prediction / target) ** 2)))


def log10_error(prediction_m: np.ndarray, target_m: np.ndarray, valid: np.ndarray | None = None) -> float:
    """Average ``|log10(p) - log10(t)|``, without unit.

    Args:
        prediction_m: Predicted depth in metres, float ``(H, W)``.
        target_m: True depth in metres, float ``(H, W)``.
        valid: Pixels that count, as in ``abs_rel``.

    Returns:
        The mean; 0.1 is a factor of 1.26.

    Raises:
        InputError: As ``abs_rel`` says.
    """
    prediction, target = valid_pairs(prediction_m, target_m, valid, ("prediction_m", "target_m"))
    return float(np.mean(np.abs(np.log10(prediction / target))))


def si_log(
    prediction: np.ndarray, target: np.ndarray, valid: np.ndarray | None = None, *, mean_weight: float = 1.0
) -> float:
    """Scale-invariant log error ``sqrt(mean(g^2) - mean_weight * mean(g)^2)`` with ``g = ln(p) - ln(t)``.

    Args:
        prediction: Predicted depth, float ``(H, W)``; its scale is of no effect at ``mean_weight`` 1.
        target: True depth, float ``(H, W)``.
        valid: Pixels that count, as in ``abs_rel``.
        mean_weight: 1 is the benchmarks' error (the standard deviation of g), 0.5 the training loss of Eigen et al.

    Returns:
        The error in natural-log units; KITTI's table prints 100 times this.

    Raises:
        InputError: As ``abs_rel`` says, or if ``mean_weight`` is not in [0, 1].
    """
    if not 0 <= mean_weight <= 1:
        raise InputError(f"mean_weight is {mean_weight!r}, wanted a number in [0, 1]")
    prediction, target = valid_pairs(prediction, target, valid, ("prediction", "target"))
    gap = np.log(prediction / target)
    # The variance form: mean(g^2) - mean(g)^2 would lose its digits, or turn negative, when g is nearly constant.
    return float(np.sqrt(np.var(gap) + (1 - mean_weight) * np.mean(gap) ** 2))


def median_scaled(prediction: np.ndarray, target: np.ndarray, valid: np.ndarray | None = None) -> np.ndarray:
    """Give a prediction of unknown scale the median of the target.

    Args:
        prediction: Predicted depth of any scale, float ``(H, W)``.
        target: True depth in metres, float ``(H, W)``.
        valid: Pixels whose medians are compared, as in ``abs_rel``.

    Returns:
        ``prediction * median(target) / median(prediction)``, shape and type of ``prediction``, in metres.

    Raises:
        InputError: As ``abs_rel`` says.
    """
    predicted, true = valid_pairs(prediction, target, valid, ("prediction", "target"))
    return prediction * prediction.dtype.type(np.median(true) / np.median(predicted))


def boundary_f1(
    prediction: np.ndarray,
    target: np.ndarray,
    valid: np.ndarray | None = None,
    *,
    lowest_ratio: float = 1.05,
    highest_ratio: float = 1.25,
    count: int = 10,
) -> float:
    """Score the occluding contours of a depth map: the scale-invariant boundary F1 of Depth Pro.

    A contour at ratio t lies between two neighbours of which one is more than t times as deep as the other. Which of
    them is nearer makes four directions: left, right, upper and lower neighbour. In each direction precision is the
    share of the predicted contours that are true, recall the share of the true ones that are predicted, 0 where there
    is none. The two are averaged over the four directions before their harmonic mean is taken, and F1 over ``count``
    evenly spaced ratios with weights in proportion to the ratio. No scale of the depths changes it.

    So the truth does not score 1 against itself where a direction has no contour: a single upright edge reaches 1/4,
    and a truth without contours gives 0 to everything. Compare methods on the same pictures, and with the truth's own
    score as the ceiling.

    The score is published for dense truth. Where the truth has holes, pairs of two valid neighbours count here and no
    others; without holes that is the published score. Of LiDAR few pairs are left, and none across most contours: the
    number then says little.

    Args:
        prediction: Predicted depth of any scale, float ``(H, W)``.
        target: True depth, float ``(H, W)``.
        valid: Pixels that count, as in ``abs_rel``.
        lowest_ratio: Smallest ratio of the depths of two neighbours that makes a contour, above 1.
        highest_ratio: Largest ratio.
        count: Number of ratios.

    Returns:
        Score in [0, 1]; NaN where no two valid pixels are neighbours.

    Raises:
        InputError: As ``abs_rel`` says, or if the ratios are not above 1 and ascending or ``count`` is below 1.
    """
    if not (1 < lowest_ratio <= highest_ratio < np.inf and isinstance(count, int) and count >= 1):
        raise InputError(
            f"lowest_ratio is {lowest_ratio!r}, highest_ratio {highest_ratio!r} and count {count!r}, wanted "
            "1 < lowest_ratio <= highest_ratio and a count of 1 or more"
        )
    checked_float("target", target)
    if target.ndim != 2:
        raise InputError(f"target has the shape {target.shape}, wanted (H, W)")
    valid_pairs(prediction, target, valid, ("prediction", "target"))
    valid = np.isfinite(target) & (target > 0) if valid is None else checked_mask("valid", valid, target.shape)

    def neighbour_ratios(depth: np.ndarray) -> list[np.ndarray]:
        """How many times as deep a pixel is as its neighbour, in the four directions, ``(n,)`` each."""
        safe = np.where(valid, depth, 1).astype(np.float64)
        pairs = []
        for one, other in (((..., slice(1, None)), (..., slice(-1))), (slice(1, None), slice(-1))):
            both = valid[one] & valid[other]
            deep, near = safe[one][both], safe[other][both]
            pairs += [deep / near, near / deep]
        return pairs

    predicted, true = neighbour_ratios(prediction), neighbour_ratios(target)
    if not any(len(pairs) for pairs in true):
        return float("nan")
    ratios = np.linspace(lowest_ratio, highest_ratio, count)
    scores = []
    for ratio in ratios:
        precision = recall = 0.0
        for guess, truth in zip(predicted, true, strict=True):
            drawn, wanted = guess > ratio, truth > ratio
            hits = np.count_nonzero(drawn & wanted)
            precision += hits / max(np.count_nonzero(drawn), 1) / len(true)
            recall += hits / max(np.count_nonzero(wanted), 1) / len(true)
        scores.append(2 * precision * recall / (precision + recall) if precision else 0.0)
    return float(np.average(scores, weights=ratios))
