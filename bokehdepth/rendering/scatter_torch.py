"""The span scatter in torch: any device, batches, and gradients for training through the renderer.

The numbers are those of `scatter.py` to 2e-5 of the largest value. The gradient with respect to the values is exact,
the transposed operator; the one with respect to the radius is the slope between the neighbouring kernels of the table.
On CUDA the sums are made with atomic additions, whose order, and so the last bits, may change from run to run.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as fn

from bokehdepth.errors import InputError
from bokehdepth.rendering.aperture import DISK, Aperture, SpanTable, span_table
from bokehdepth.rendering.scatter import Border


class _Spans:
    """A table on a device, ordered so that the pairs of one row come together, and how to walk over it."""

    def __init__(self, table: SpanTable, device: torch.device) -> None:
        self.steps, self.up, self.aside = table.steps_per_px, table.half_height_px, table.half_width_px
        self.count = len(table.first) - 1
        length = np.diff(table.first)
        # Every kernel gets as many slots as the longest has; slots of no use have weight 0 and do nothing.
        slots = int(length.max())
        place = table.first[:-1, None] + np.minimum(np.arange(slots)[None], length[:, None] - 1)
        used = np.arange(slots)[None] < length[:, None]
        self.longest = torch.from_numpy(length).to(device)
        self.row = torch.from_numpy(table.row[place]).to(device, torch.long)
        self.column = torch.from_numpy(table.column[place]).to(device, torch.long)
        self.pair = torch.from_numpy(np.where(used[..., None], table.pair[place], 0)).to(device)

    def numbers(self, radius_px: torch.Tensor) -> torch.Tensor:
        return torch.round(radius_px * self.steps).long()


class _SpanScatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values: torch.Tensor, radius_px: torch.Tensor, spans: _Spans) -> torch.Tensor:  # noqa: ANN001
        number = spans.numbers(radius_px)
        ctx.spans = spans
        ctx.save_for_backward(values, number)
        batch, channels, height, width = values.shape
        rows, stride = height + 2 * spans.up, width + 2 * spans.aside + 2
        canvas = values.new_zeros(batch, channels, rows * stride)
        home = _home(values, spans, stride)
        flat = values.flatten(2)
        for slot in range(int(spans.longest[number.unique()].max())):
            at, pair = _slot(spans, number, slot, home, stride)
            for side in (0, 1):
                weighted = flat * pair[..., side].unsqueeze(1)
                canvas.scatter_add_(2, (at + side).unsqueeze(1).expand_as(weighted), weighted)
        spread = canvas.unflatten(2, (rows, stride)).cumsum(dim=3)
        return spread[:, :, spans.up : spans.up + height, spans.aside : spans.aside + width]

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # noqa: ANN001
        values, number = ctx.saved_tensors
        spans = ctx.spans
        to_values = _gathered(grad, number, spans) if ctx.needs_input_grad[0] else None
        to_radius = None
        if ctx.needs_input_grad[1]:
            if spans.steps == 0:
                raise RuntimeError("the gradient of one exact radius was asked for, wanted a table of radii")
            low, high = (number - 1).clamp(min=0), (number + 1).clamp(max=spans.count - 1)
            change = _gathered(grad, high, spans) - _gathered(grad, low, spans)
            to_radius = (values * change).sum(dim=1) * (spans.steps / (high - low))
        return to_values, to_radius, None


def _home(values: torch.Tensor, spans: _Spans, stride: int) -> torch.Tensor:
    """Place of each pixel ``(H * W,)`` in a flat canvas."""
    rows = torch.arange(values.shape[2], device=values.device)[:, None] + spans.up
    columns = torch.arange(values.shape[3], device=values.device)[None] + spans.aside
    return (rows * stride + columns).flatten()


def _slot(
    spans: _Spans, number: torch.Tensor, slot: int, home: torch.Tensor, stride: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Places ``(B, H * W)`` and differences ``(B, H * W, 2)`` of the pair with one number, for every pixel."""
    flat = number.flatten(1)
    return home + spans.row[:, slot][flat] * stride + spans.column[:, slot][flat], spans.pair[:, slot][flat]


def _gathered(grad: torch.Tensor, number: torch.Tensor, spans: _Spans) -> torch.Tensor:
    """Apply the transposed operator ``(B, C, H, W)``: each pixel collects from where it would spread to."""
    height, width = grad.shape[2:]
    padded = fn.pad(grad, (spans.aside, spans.aside + 2, spans.up, spans.up))
    behind = padded.flip(3).cumsum(dim=3).flip(3)
    stride = behind.shape[3]
    behind = behind.flatten(2)
    home = _home(grad, spans, stride)
    out = torch.zeros_like(grad).flatten(2)
    for slot in range(int(spans.longest[number.unique()].max())):
        at, pair = _slot(spans, number, slot, home, stride)
        for side in (0, 1):
            index = (at + side).unsqueeze(1).expand(-1, grad.shape[1], -1)
            out += pair[..., side].unsqueeze(1) * behind.gather(2, index)
    return out.unflatten(2, (height, width))


def span_scatter(
    values: torch.Tensor, radius_px: torch.Tensor, *, aperture: Aperture = DISK, border: Border = "continued"
) -> torch.Tensor:
    """Spread every pixel over its own blur kernel and add up, as `scatter.span_scatter` does for arrays.

    Args:
        values: floating point ``(B, C, H, W)``: light, or light times opacity and opacity.
        radius_px: Blur radius of each pixel ``(B, H, W)``, finite, 0 to 512.
        aperture: Shape of the kernels.
        border: ``"continued"`` or ``"lost"``, as there.

    Returns:
        ``(B, C, H, W)``, differentiable with respect to both tensors.

    Raises:
        InputError: If the shapes do not fit, a radius is out of range, or ``border`` is none of these.
    """
    if values.ndim != 4 or not values.is_floating_point():
        raise InputError(f"values is {values.dtype} {tuple(values.shape)}, wanted floating point (B, C, H, W)")
    if radius_px.shape != (values.shape[0], *values.shape[2:]):
        wanted = (values.shape[0], *values.shape[2:])
        raise InputError(f"radius_px has the shape {tuple(radius_px.shape)}, wanted {wanted}")
    if border not in ("continued", "lost"):
        raise InputError(f"border is {border!r}, wanted 'continued' or 'lost'")
    low, high = (float(bound) for bound in torch.aminmax(radius_px.detach()))
    if not (low >= 0 and np.isfinite(high)):
        raise InputError(f"radius_px spans [{low:g}, {high:g}], wanted finite pixels, 0 or more")
    if radius_px.requires_grad:  # a slope needs neighbours on both sides
        high = high + 0.1
    table = span_table(aperture, low, high)
    height, width = values.shape[2:]
    up, aside = (table.half_height_px, table.half_width_px) if border == "continued" else (0, 0)
    if up or aside:
        values = fn.pad(values, (aside, aside, up, up), mode="replicate")
        radius_px = fn.pad(radius_px[:, None], (aside, aside, up, up), mode="replicate")[:, 0]
    spread = _SpanScatter.apply(values, radius_px, _Spans(table, values.device))
    return spread[:, :, up : up + height, aside : aside + width]


def span_scatter_arrays(
    values: np.ndarray, radius_px: np.ndarray, *, aperture: Aperture, border: Border
) -> np.ndarray:
    """Run `span_scatter` on checked arrays ``(H, W, C)`` and ``(H, W)``, on the CPU."""
    tensor = torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))[None]
    with torch.no_grad():
        spread = span_scatter(tensor, torch.from_numpy(radius_px)[None], aperture=aperture, border=border)
    return np.ascontiguousarray(spread[0].numpy().transpose(1, 2, 0))
