"""Losses of UniDepthV2 (arXiv 2502.20110) beside its scale-invariant log loss, each a value for every picture.

Learned from `unidepth/ops/losses` of lpiccinelli-eth/UniDepth. Different here: patches have one size, the middle of
the published range, and lie on the middle of the cell whose edge is strong; every picture has equally many, the
strongest; and the loss of consistency between two crops of one photo (`SelfDistill`, weight 0.1) is left out. All in
float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as fn

from bokehdepth.modeling_unidepth_parts import pinhole_rays

_FLOOR = 1e-4  # under every root and logarithm
_LEAST = 1e-5  # of an absolute error
_FAR_M = 50.0
_CELL_PX = 14
_STRONG_SHARE = 0.1
_PATCH_SHARE = 0.06  # published: 0.04 to 0.08, drawn anew for each batch
_LEAST_PIXELS = 6
_SIGMAS = 1.96


def ray_error(camera: torch.Tensor, true_camera: torch.Tensor, height_px: int, width_px: int) -> torch.Tensor:
    """Root mean squared difference of the unit rays of two cameras, a root for each row of pixels, their mean.

    Args:
        camera: (B, 3, 3) pinhole matrices in px, predicted.
        true_camera: (B, 3, 3).
        height_px: of the pictures.
        width_px: of the pictures.

    Returns:
        (B,).
    """
    rays, wanted = (pinhole_rays(matrix.float(), height_px, width_px) for matrix in (camera, true_camera))
    return ((rays - wanted).square().mean((1, 3)) + _FLOOR).sqrt().mean(1)


def confidence_error(
    confidence: torch.Tensor, depth_m: torch.Tensor, true_depth_m: torch.Tensor, valid: torch.Tensor
) -> torch.Tensor:
    """Root of the mean distance of log confidence from the error in metres that is left at the true median.

    Args:
        confidence: (B, H, W), positive; its logarithm is the error that the model expects.
        depth_m: (B, H, W), predicted.
        true_depth_m: (B, H, W), positive where valid.
        valid: (B, H, W) bool.

    Returns:
        (B,), 0.01 for a picture without a valid pixel.
    """
    errors = []
    for own, depth, truth, known in zip(confidence.float(), depth_m.float(), true_depth_m.float(), valid, strict=True):
        if not known.any():
            errors.append(depth.new_zeros(()))
            continue
        depth, truth = depth[known], truth[known]
        left = (depth * truth.median() / depth.median() - truth).abs()
        errors.append((left - own[known].log()).abs().mean())
    return (torch.stack(errors) + _FLOOR).sqrt()


def edge_guided_error(
    depth_m: torch.Tensor, true_depth_m: torch.Tensor, valid: torch.Tensor, image: torch.Tensor
) -> torch.Tensor:
    """Error of shape alone, scale and shift taken out: half of the whole picture, half of patches on its edges.

    Depths become `log(1 + 50 / depth)`. In the picture and in each patch both are brought to mean 0 and deviation 1
    over the pixels within 1.96 deviations of both means; the root of the mean absolute difference is the error.

    Args:
        depth_m: (B, H, W), predicted.
        true_depth_m: (B, H, W), positive where valid.
        valid: (B, H, W) bool.
        image: (B, 3, H, W) photos, of any scale, whose edges say where the patches lie.

    Returns:
        (B,).
    """
    known = torch.where(valid, true_depth_m, 1.0)
    found, wanted = ((_FAR_M / (_FLOOR + x.float()) + 1).log() for x in (depth_m, known))
    whole = _shape_error(*(x.flatten(1)[:, None] for x in (found, wanted, valid)))
    side = int(_PATCH_SHARE * min(depth_m.shape[-2:]))
    side += 1 - side % 2
    rows, columns = strong_edges(image.float())
    patches = _shape_error(*(_patches(x, rows, columns, side) for x in (found, wanted, valid)))
    return (whole + patches) / 2


def strong_edges(image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and columns in px (B, N): the middles of the tenth of 14 px cells with the strongest edges (B, 3, H, W)."""
    across = image.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 8
    kernels = torch.stack([across, across.T])[:, None].repeat(image.shape[1], 1, 1, 1)
    slopes = fn.conv2d(image, kernels, padding=1, groups=image.shape[1]).unflatten(1, (-1, 2))
    edges = slopes.square().mean(1).sum(1, keepdim=True).sqrt()
    inside = torch.zeros_like(edges)
    inside[..., 3:-3, 3:-3] = 1
    cells = fn.interpolate(edges * inside, scale_factor=1 / _CELL_PX, mode="bilinear", align_corners=False)
    count = max(1, round(_STRONG_SHARE * cells[0].numel()))
    places = cells.flatten(1).topk(count).indices
    middle = _CELL_PX // 2
    return places // cells.shape[-1] * _CELL_PX + middle, places % cells.shape[-1] * _CELL_PX + middle


def _patches(values: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, side: int) -> torch.Tensor:
    """Squares (B, N, side^2) of (B, H, W) about the given pixels (B, N); 0 or False beyond the picture."""
    half = side // 2
    padded = fn.pad(values.float(), (half,) * 4).to(values.dtype)
    reach = torch.arange(side, device=values.device)
    batch = torch.arange(len(values), device=values.device)[:, None, None, None]
    y, x = rows[:, :, None, None] + reach[:, None], columns[:, :, None, None] + reach
    return padded[batch, y, x].flatten(2)


def _shape_error(found: torch.Tensor, wanted: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Mean (B,) over patches (B, N, P) with enough stable pixels of the root of their mean error."""
    near = valid.clone()
    for values in (found.detach(), wanted):
        mean, variance = _statistics(values, valid)
        near &= (values - mean).abs() < _SIGMAS * variance.clamp(min=1e-6).sqrt()
    normed = []
    for values in (found, wanted):
        mean, variance = _statistics(values, near)
        normed.append((values - mean) / (variance + _FLOOR).sqrt())
    error = (normed[0] - normed[1]).abs().clamp(min=_LEAST)
    roots = (_mean(error, near) + _FLOOR).sqrt()[..., 0]
    return _mean(roots, near.sum(-1) >= _LEAST_PIXELS)[..., 0]


def _statistics(values: torch.Tensor, kept: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    mean = _mean(values, kept)
    return mean, _mean((values - mean).square(), kept)


def _mean(values: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Mean over the last axis, which stays, of the values that are kept; 0 where none is."""
    return (values * kept).sum(-1, keepdim=True) / kept.sum(-1, keepdim=True).clamp(min=1)
