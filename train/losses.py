"""Losses of both stages.

Means are taken so that averaging over processes of equal batches gives the mean over the joint batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as fn

from bokehdepth.modeling_mini_flux import level_weights


def joint_mean(errors: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """`sum(errors * weights) / (sum(weights) + 1)` over the batches of all processes, as this process's share of it.

    Data parallel training averages gradients over processes; the sum of weights is therefore averaged too, and the
    average of the results is the joint mean, however unevenly the weights are spread.

    Args:
        errors: any shape.
        weights: the same shape, not negative, without gradient.
    """
    total, processes = weights.sum(), 1
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        processes = torch.distributed.get_world_size()
        torch.distributed.all_reduce(total)
    return processes * (errors * weights).sum() / (total + 1)


def balanced_pixel_loss(
    prediction: torch.Tensor, target: torch.Tensor, radius_px: torch.Tensor, threshold_px: float = 1.0
) -> torch.Tensor:
    """Absolute plus squared error, averaged over blurred and over sharp pixels apart, so that neither kind outvotes.

    Args:
        prediction: (B, 3, H, W).
        target: (B, 3, H, W).
        radius_px: (B, 1, H, W) true blur radius.
        threshold_px: where blurred begins.
    """
    difference = prediction - target
    error = (difference.abs() + difference.square()).mean(1, keepdim=True)
    blurred = (radius_px > threshold_px).float()
    return joint_mean(error, blurred) + joint_mean(error, 1 - blurred)


def level_loss(logits: torch.Tensor, offset_dpt: torch.Tensor, levels_dpt: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of blend logits (B, J, h, w) to the levels of the true offset (B, 1, H, W), H and W multiples.

    Blurred and sharp pixels count one half each, as in `balanced_pixel_loss`.
    """
    target = fn.adaptive_avg_pool2d(level_weights(offset_dpt, levels_dpt), logits.shape[-2:])
    entropy = -(target * logits.log_softmax(1)).sum(1)
    sharp = target[:, 0]
    return (joint_mean(entropy, sharp) + joint_mean(entropy, 1 - sharp)) / 2


def balanced_mean(errors: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Mean over pictures of the half-sum of two weighted means, so that neither kind of pixel outvotes the other.

    Args:
        errors: (B, ...).
        first: the same shape, not negative; weights of one kind.
        second: of the other; a kind that a picture lacks counts as 0 there.
    """

    def mean(weights: torch.Tensor) -> torch.Tensor:
        return (errors * weights).flatten(1).sum(1) / weights.flatten(1).sum(1).clamp(min=1)

    return ((mean(first) + mean(second)) / 2).mean()


def scale_invariant_log_loss(
    prediction_m: torch.Tensor,
    target_m: torch.Tensor,
    variance_share: float = 0.5,
    valid: torch.Tensor | None = None,
) -> torch.Tensor:
    """Root of `mean(g^2) - variance_share * mean(g)^2` with `g = log(prediction / target)`, for each picture.

    Args:
        prediction_m: (B, H, W), positive metres.
        target_m: (B, H, W), positive metres where valid.
        variance_share: 0 is the plain log error, 1 ignores scale.
        valid: (B, H, W) bool, some of each picture; None counts everything.
    """
    g, weight = _log_ratio(prediction_m, target_m, valid)
    count = weight.sum((-2, -1))
    mean, square = g.sum((-2, -1)) / count, g.square().sum((-2, -1)) / count
    return (square - variance_share * mean.square()).clamp(min=1e-8).sqrt().mean()


def log_gradient_loss(
    prediction_m: torch.Tensor, target_m: torch.Tensor, scales: int = 3, valid: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean absolute difference of the gradients of log depth, over `scales` halvings; all (B, H, W), metres.

    A difference counts where both of its pixels are valid; a halved pixel is valid where all four of its are.
    """
    g, weight = _log_ratio(prediction_m, target_m, valid)
    g, weight = g[:, None], weight[:, None]
    total = g.new_zeros(())
    for _ in range(scales):
        for axis in (-1, -2):
            count = g.shape[axis] - 1
            both = weight.narrow(axis, 1, count) * weight.narrow(axis, 0, count)
            change = (g.narrow(axis, 1, count) - g.narrow(axis, 0, count)).abs() * both
            total = total + (change.sum((1, 2, 3)) / both.sum((1, 2, 3)).clamp(min=1)).mean()
        g, weight = fn.avg_pool2d(g, 2), (fn.avg_pool2d(weight, 2) == 1).float()
    return total / scales


def bounded_log_losses(
    depth: torch.Tensor,
    disparity: torch.Tensor,
    valid: torch.Tensor,
    metric: torch.Tensor,
    far_m: float,
    scales: int = 4,
) -> dict[str, torch.Tensor]:
    """Absolute errors of log depth that stay bounded towards infinity, so that the sky can be learned.

    The error of a pixel is `log(1/depth + 1/far_m) - log(disparity + 1/far_m)`. Each term is a mean over a picture's
    valid pixels, then over all pictures, those without a valid pixel as 0: halves of a batch average to the whole.

    Args:
        depth: (B, H, W), positive metres.
        disparity: (B, H, W) in 1/m or, where not metric, of an unknown scale; 0 is infinitely far.
        valid: (B, H, W) bool.
        metric: (B,) bool, whose metres count.
        far_m: beyond it distances count less and less.
        scales: halvings of the gradient term.

    Returns:
        metric: of metric pictures, the mean absolute error; shape: of all, after the median error is taken out;
        gradient: mean absolute difference between neighbours of the error, over the scales; abs_rel: of depth in
        metric pictures up to `far_m`, without gradient.
    """
    counts = valid.sum((-2, -1)).clamp(min=1)
    inverse = 1 / depth
    # A scale that is not known is matched before the bound comes in.
    scale = torch.ones_like(counts, dtype=depth.dtype)
    with torch.no_grad():
        for number in (~metric).nonzero()[:, 0].tolist():
            seen = valid[number] & (disparity[number] > 0)
            if bool(seen.any()):
                ratio = inverse[number][seen].log() - disparity[number][seen].log()
                scale[number] = ratio.median().exp()
    target = disparity * scale[:, None, None]
    error = (inverse + 1 / far_m).log() - (target.clamp(min=0) + 1 / far_m).log()
    error = torch.where(valid, error, 0.0)
    with torch.no_grad():
        middles = [e[v].median() if bool(v.any()) else e.new_zeros(()) for e, v in zip(error, valid, strict=True)]
        middle = torch.stack(middles)[:, None, None]
        near = valid & (disparity > 1 / far_m)
        relative = torch.where(near, (depth * disparity - 1).abs(), 0.0).sum((-2, -1)) / near.sum((-2, -1)).clamp(min=1)
    each = error.abs().sum((-2, -1)) / counts
    shape = torch.where(valid, (error - middle).abs(), 0.0).sum((-2, -1)) / counts
    gradient, level, weight = depth.new_zeros(()), error[:, None], valid[:, None].float()
    for _ in range(scales):
        for axis in (-1, -2):
            count = level.shape[axis] - 1
            both = weight.narrow(axis, 1, count) * weight.narrow(axis, 0, count)
            change = (level.narrow(axis, 1, count) - level.narrow(axis, 0, count)).abs() * both
            gradient = gradient + (change.sum((1, 2, 3)) / both.sum((1, 2, 3)).clamp(min=1)).mean()
        level, weight = fn.avg_pool2d(level, 2), (fn.avg_pool2d(weight, 2) == 1).float()
    return {
        "metric": torch.where(metric, each, 0.0).mean(),
        "shape": shape.mean(),
        "gradient": gradient / scales,
        "abs_rel": relative[metric].mean() if bool(metric.any()) else depth.new_zeros(()),
    }


def _log_ratio(
    prediction_m: torch.Tensor, target_m: torch.Tensor, valid: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log of prediction over target, 0 where invalid, and the validity as 0 or 1."""
    if valid is None:
        valid = torch.ones_like(target_m, dtype=torch.bool)
    # Invalid depths may be 0, infinite or NaN, which a product with 0 would not silence.
    g = prediction_m.log() - torch.where(valid, target_m, 1.0).log()
    return torch.where(valid, g, 0.0), valid.float()


def velocity_loss(prediction: torch.Tensor, clean: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Flow-matching loss: mean squared distance of the predicted velocity from `noise - clean`; all one shape."""
    return fn.mse_loss(prediction.float(), noise.float() - clean.float())
