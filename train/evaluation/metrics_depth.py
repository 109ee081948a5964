"""Error measures of depth.

Sources: Eigen et al. 2014 (AbsRel, SqRel, delta, RMSE, the scale-invariant log error) and section 10 of arXiv
2512.12425 (Eq. 40-43); boundary F1 is the contour score of Depth Pro (arXiv 2410.02073, section 3.3, and its published
code, `eval/boundary_metrics.py` of apple/ml-depth-pro).
"""

from __future__ import annotations

import numpy as np

RATIOS = np.linspace(1.05, 1.25, 10)
"""Ratios of the depths of two neighbours that make a contour of `boundary_f1`."""


def depth_errors(prediction_m: np.ndarray, target_m: np.ndarray) -> dict[str, float]:
    """Error measures over the pixels that count.

    Args:
        prediction_m: predicted depth in metres, finite and above 0, float64 (n,).
        target_m: true depth likewise.

    Returns:
        abs_rel, mean |p - t| / t; sq_rel, mean (p - t)^2 / t in metres; rmse_m; rmse_log, of ln p - ln t; log10, mean
        |log10 p - log10 t|; si_log, the standard deviation of ln p - ln t (KITTI's table prints 100 times this);
        delta1 to delta3, the shares with max(p/t, t/p) below 1.25, its square and its cube.
    """
    gap = np.log(prediction_m / target_m)
    factor = np.maximum(prediction_m / target_m, target_m / prediction_m)
    errors = {
        "abs_rel": np.mean(np.abs(prediction_m - target_m) / target_m),
        "sq_rel": np.mean((prediction_m - target_m) ** 2 / target_m),
        "rmse_m": np.sqrt(np.mean((prediction_m - target_m) ** 2)),
        "rmse_log": np.sqrt(np.mean(gap**2)),
        "log10": np.mean(np.abs(gap)) / np.log(10),
        # mean(g^2) - mean(g)^2 would lose its digits, or turn negative, when g is nearly constant.
        "si_log": np.std(gap),
        **{f"delta{power}": np.mean(factor < 1.25**power) for power in (1, 2, 3)},
    }
    return {name: float(value) for name, value in errors.items()}


def boundary_f1(prediction: np.ndarray, target: np.ndarray, valid: np.ndarray) -> float:
    """Score the occluding contours of a depth map: the scale-invariant boundary F1 of Depth Pro.

    A contour at ratio t lies between two neighbours of which one is more than t times as deep as the other. Which of
    them is nearer makes four directions: left, right, upper and lower neighbour. In each direction precision is the
    share of the predicted contours that are true, recall the share of the true ones that are predicted, 0 where there
    is none. The two are averaged over the four directions before their harmonic mean is taken, and F1 over `RATIOS`
    with weights in proportion to the ratio. No scale of the depths changes it.

    So the truth does not score 1 against itself where a direction has no contour: a single upright edge reaches 1/4,
    and a truth without contours gives 0 to everything. Compare methods on the same pictures, and with the truth's own
    score as the ceiling.

    The score is published for dense truth. Where the truth has holes, pairs of two valid neighbours count here and no
    others; without holes that is the published score. Of LiDAR few pairs are left, and none across most contours: the
    number then says little.

    Args:
        prediction: predicted depth of any scale, above 0 where it counts, float (H, W).
        target: true depth likewise.
        valid: pixels that count, bool (H, W).

    Returns:
        Score in [0, 1]; NaN where no two valid pixels are neighbours.
    """

    def neighbour_ratios(depth: np.ndarray) -> list[np.ndarray]:
        """How many times as deep a pixel is as its neighbour, in the four directions, (n,) each."""
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
    scores = []
    for ratio in RATIOS:
        precision = recall = 0.0
        for guess, truth in zip(predicted, true, strict=True):
            drawn, present = guess > ratio, truth > ratio
            hits = np.count_nonzero(drawn & present)
            precision += hits / max(np.count_nonzero(drawn), 1) / len(true)
            recall += hits / max(np.count_nonzero(present), 1) / len(true)
        scores.append(2 * precision * recall / (precision + recall) if precision else 0.0)
    return float(np.average(scores, weights=RATIOS))
