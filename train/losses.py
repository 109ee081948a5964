"""Losses of both stages, in float32 whatever the precision of what they compare.

A step's samples may come in several batches and on several processes: see `SummedNetwork`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as fn
from torch import nn

Sums = dict[str, torch.Tensor]
"""Sums and counts over samples or pixels, by name."""


class SummedNetwork(nn.Module):
    """A network whose loss is a function of sums over all samples of an optimiser step, however the step is split.

    A step's samples come in parts: batches one after the other, and on several processes. The mean of the parts' means
    is not the mean over all wherever the parts hold different numbers of what is averaged (blurred pixels, known
    depths). So each part gives its sums, and the loss is formed from those of the whole step: `within` stands a part
    in it, and the parts' gradients add up to the whole's.
    The loss is linear in the sums that depend on weights: its gradient needs nothing but the counts of the whole.
    """

    def counts(self, batch: dict[str, Any]) -> Sums:
        """What the loss divides by, which the data alone decide."""
        raise NotImplementedError

    def sums(self, batch: dict[str, Any]) -> Sums:
        """All sums of a batch, its counts among them."""
        raise NotImplementedError

    def terms(self, sums: Sums) -> dict[str, torch.Tensor]:
        """Scalars by name, "loss" among them, from the sums of a step."""
        raise NotImplementedError

    def forward(self, batch: dict[str, Any], part: bool = False) -> dict[str, torch.Tensor]:
        """The sums of a part of a step, or the terms of a batch that is the whole of it."""
        sums = self.sums(batch)
        return sums if part else self.terms(sums)


def total(parts: Iterable[Sums]) -> Sums:
    """Sums over several parts, without gradient."""
    result: Sums = {}
    for part in parts:
        for name, value in part.items():
            result[name] = result[name] + value.detach() if name in result else value.detach()
    return result


def within(part: Sums, whole: Sums) -> Sums:
    """The sums of the whole step with the gradient of a part of it; a sum that `whole` lacks is the part's own."""
    return {name: whole[name] + (value - value.detach()) if name in whole else value for name, value in part.items()}


def pixel_error(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Absolute plus squared error (B, 1, H, W) of pictures (B, 3, H, W), the mean over their channels."""
    difference = prediction.float() - target.float()
    return (difference.abs() + difference.square()).mean(1, keepdim=True)


def balanced_means(errors: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Half-sums (B,) of each picture's two weighted means, so that neither kind of pixel outvotes the other.

    Args:
        errors: (B, ...).
        first: the same shape, not negative; weights of one kind.
        second: of the other; a kind that a picture lacks counts as 0 there.
    """

    def mean(weights: torch.Tensor) -> torch.Tensor:
        return (errors * weights).flatten(1).sum(1) / weights.flatten(1).sum(1).clamp(min=1)

    return (mean(first) + mean(second)) / 2


def scale_invariant_log_loss(
    prediction_m: torch.Tensor,
    target_m: torch.Tensor,
    variance_share: float = 0.5,
    valid: torch.Tensor | None = None,
    reduction: str = "mean",
    pooled_pictures: int = 1,
) -> torch.Tensor:
    """Root of `mean(g^2) - variance_share * mean(g)^2` with `g = log(prediction / target)`, for each picture.

    Depth Anything V2 takes both means over all pixels of a process's batch (`metric_depth/util/loss.py` of its
    repository), where pictures that are too near make up for others that are too far.

    Args:
        prediction_m: (B, H, W), positive metres.
        target_m: (B, H, W), positive metres where valid.
        variance_share: 0 is the plain log error, 1 ignores scale.
        valid: (B, H, W) bool; None counts everything. A picture without a valid pixel does not count.
        reduction: mean over the pictures that count, or their sum.
        pooled_pictures: so many pictures, one after the other, are one here.
    """
    g, weight = (pooled(x, pooled_pictures) for x in _log_ratio(prediction_m, target_m, valid))
    count = weight.sum((-2, -1)).clamp(min=1)
    mean, square = g.sum((-2, -1)) / count, g.square().sum((-2, -1)) / count
    roots = (square - variance_share * mean.square()).clamp(min=1e-8).sqrt()
    return _over_pictures(roots, weight, reduction)


def pooled(values: torch.Tensor, pictures: int) -> torch.Tensor:
    """Groups of pictures (B, ...), one after the other, as (B / pictures, N, 1); the last is filled up with zeros."""
    lacking = -len(values) % pictures
    return torch.cat([values, values.new_zeros(lacking, *values.shape[1:])]).view(-1, pictures * values[0].numel(), 1)


def log_gradient_loss(
    prediction_m: torch.Tensor,
    target_m: torch.Tensor,
    scales: int = 3,
    valid: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """Mean absolute difference of the gradients of log depth, over `scales` halvings; all (B, H, W), metres.

    A difference counts where both of its pixels are valid; a halved pixel is valid where all four of its are; a
    picture counts where any is. The reduction is that of `scale_invariant_log_loss`.
    """
    ratio, weight = _log_ratio(prediction_m, target_m, valid)
    return _over_pictures(_changes(ratio, weight, scales, torch.abs), weight, reduction)


def _changes(
    values: torch.Tensor, weight: torch.Tensor, scales: int, size: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Mean size (B,) of the differences between neighbours of values (B, H, W), over halvings of the picture."""
    values, weight = values[:, None], weight[:, None]
    result = values.new_zeros(len(values))
    for _ in range(scales):
        for axis in (-1, -2):
            count = values.shape[axis] - 1
            both = weight.narrow(axis, 1, count) * weight.narrow(axis, 0, count)
            change = size(values.narrow(axis, 1, count) - values.narrow(axis, 0, count)) * both
            result = result + change.sum((1, 2, 3)) / both.sum((1, 2, 3)).clamp(min=1)
        values, weight = fn.avg_pool2d(values, 2), (fn.avg_pool2d(weight, 2) == 1).float()
    return result / scales


def _over_pictures(values: torch.Tensor, weight: torch.Tensor, reduction: str) -> torch.Tensor:
    """Sum or mean of a value of each picture (B,) over those of which anything is valid."""
    counted = weight.flatten(1).any(1)
    found = torch.where(counted, values, 0.0).sum()
    return found if reduction == "sum" else found / counted.sum().clamp(min=1)


def _smooth_abs(values: torch.Tensor, width: float = 0.01) -> torch.Tensor:
    """Absolute values whose slope passes through 0 within `width`: the pixel that is the median has no jump there."""
    return (values.square() + width**2).sqrt() - width


def bounded_log_errors(
    depth: torch.Tensor,
    disparity: torch.Tensor,
    valid: torch.Tensor,
    metric: torch.Tensor,
    far_m: float,
    scales: int = 4,
) -> dict[str, torch.Tensor]:
    """Absolute errors of log depth that stay bounded towards infinity, so that the sky can be learned.

    The error of a pixel is `log(1/depth + 1/far_m) - log(disparity + 1/far_m)`.

    Args:
        depth: (B, H, W), positive metres.
        disparity: (B, H, W) in 1/m or, where not metric, of an unknown scale; 0 is infinitely far.
        valid: (B, H, W) bool.
        metric: (B,) bool, whose metres count.
        far_m: beyond it distances count less and less.
        scales: halvings of the gradient term.

    Returns:
        (B,) of each picture's means over its valid pixels, 0 without any. metric: the absolute error, 0 where not
        metric; shape: after the median error is taken out; gradient: absolute difference between neighbours of the
        error, over the scales; abs_rel: of metric depth up to `far_m`, without gradient.
    """
    counts, inverse = valid.sum((-2, -1)).clamp(min=1), 1 / depth
    with torch.no_grad():  # a scale that is not known is matched before the bound comes in
        scale = torch.ones_like(inverse[:, 0, 0])
        for number in (~metric).nonzero()[:, 0].tolist():
            seen = valid[number] & (disparity[number] > 0)
            if bool(seen.any()):
                scale[number] = (inverse[number][seen] / disparity[number][seen]).median()
    target = (disparity * scale[:, None, None]).clamp(min=0)
    error = torch.where(valid, (inverse + 1 / far_m).log() - (target + 1 / far_m).log(), 0.0)
    with torch.no_grad():
        middles = [e[v].median() if bool(v.any()) else e.new_zeros(()) for e, v in zip(error, valid, strict=True)]
        middle = torch.stack(middles)[:, None, None]
        near = valid & (disparity > 1 / far_m) & metric[:, None, None]
        relative = torch.where(near, (depth * disparity - 1).abs(), 0.0)
        relative = relative.sum((-2, -1)) / near.sum((-2, -1)).clamp(min=1)
    gradient = _changes(error, valid.float(), scales, _smooth_abs)
    return {
        "metric": torch.where(metric, _smooth_abs(error).sum((-2, -1)) / counts, 0.0),
        "shape": torch.where(valid, _smooth_abs(error - middle), 0.0).sum((-2, -1)) / counts,
        "gradient": gradient,
        "abs_rel": relative,
    }


def _log_ratio(
    prediction_m: torch.Tensor, target_m: torch.Tensor, valid: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log of prediction over target, 0 where invalid, and the validity as 0 or 1."""
    if valid is None:
        valid = torch.ones_like(target_m, dtype=torch.bool)
    # Invalid depths may be 0, infinite or NaN, which a product with 0 would not silence.
    g = prediction_m.float().log() - torch.where(valid, target_m.float(), 1.0).log()
    return torch.where(valid, g, 0.0), valid.float()


def velocity_loss(prediction: torch.Tensor, clean: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Flow-matching loss: mean squared distance of the predicted velocity from `noise - clean`; all one shape."""
    return fn.mse_loss(prediction.float(), noise.float() - clean.float())
