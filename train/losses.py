"""Losses of both stages."""

from __future__ import annotations

import torch
import torch.nn.functional as fn

from bokehdepth.modeling_mini_flux import level_weights


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
    sharp = 1 - blurred
    return (error * blurred).sum() / (blurred.sum() + 1) + (error * sharp).sum() / (sharp.sum() + 1)


def level_loss(logits: torch.Tensor, offset_dpt: torch.Tensor, levels_dpt: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of blend logits (B, J, h, w) to the levels of the true offset (B, 1, H, W), H and W multiples.

    Blurred and sharp pixels count one half each, as in `balanced_pixel_loss`.
    """
    target = fn.adaptive_avg_pool2d(level_weights(offset_dpt, levels_dpt), logits.shape[-2:])
    entropy = -(target * logits.log_softmax(1)).sum(1)
    sharp = target[:, 0]
    blurred = 1 - sharp
    return ((entropy * sharp).sum() / (sharp.sum() + 1) + (entropy * blurred).sum() / (blurred.sum() + 1)) / 2


def scale_invariant_log_loss(
    prediction_m: torch.Tensor, target_m: torch.Tensor, variance_share: float = 0.5
) -> torch.Tensor:
    """Root of `mean(g^2) - variance_share * mean(g)^2` with `g = log(prediction / target)`, for each picture.

    Args:
        prediction_m: (B, H, W), positive metres.
        target_m: (B, H, W), positive metres.
        variance_share: 0 is the plain log error, 1 ignores scale.
    """
    g = prediction_m.log() - target_m.log()
    mean = g.mean((-2, -1))
    return (g.square().mean((-2, -1)) - variance_share * mean.square()).clamp(min=1e-8).sqrt().mean()


def log_gradient_loss(prediction_m: torch.Tensor, target_m: torch.Tensor, scales: int = 3) -> torch.Tensor:
    """Mean absolute difference of the gradients of log depth, over `scales` halvings; both (B, H, W) in metres."""
    g = (prediction_m.log() - target_m.log())[:, None]
    total = g.new_zeros(())
    for _ in range(scales):
        total = total + (g[..., 1:] - g[..., :-1]).abs().mean() + (g[..., 1:, :] - g[..., :-1, :]).abs().mean()
        g = fn.avg_pool2d(g, 2)
    return total / scales
