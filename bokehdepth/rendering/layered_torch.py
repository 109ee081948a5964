"""Layered scenes in torch: many of them at once, on any device, with gradients.

Procedural scenes are put together on the CPU, one after the other (`scenes.py`); what costs most, rendering each of
them at several K, is done here for a whole batch. The arithmetic is that of `layered.py`; a layer parallel to the
sensor has its radius rounded like every other one, to 1/16 px.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from bokehdepth.camera.lens import REFERENCE_WIDTH_PX
from bokehdepth.errors import InputError
from bokehdepth.rendering.aperture import DISK, Aperture
from bokehdepth.rendering.scatter import GAMMA
from bokehdepth.rendering.scatter_torch import span_scatter
from bokehdepth.rendering.scenes import Scene


@dataclass(frozen=True)
class SceneBatch:
    """Layers of B scenes; scenes of fewer than L layers have clear ones in front.

    Attributes:
        light: Premultiplied linear light and opacity ``(B, L, 4, H, W)``, the farthest layer first.
        disparity_dpt: 1 / depth of each layer in 1/m ``(B, L, H, W)``.
        focus_distance_m: S1 of each scene in metres ``(B,)``.
    """

    light: torch.Tensor
    disparity_dpt: torch.Tensor
    focus_distance_m: torch.Tensor

    @classmethod
    def of(cls, scenes: Sequence[Scene]) -> SceneBatch:
        """Stack scenes of one size.

        Args:
            scenes: One or more.

        Returns:
            The batch, float32, on the CPU.

        Raises:
            InputError: If there is no scene or their sizes differ.
        """
        if not scenes:
            raise InputError("scenes is empty, wanted at least one scene")
        sizes = {scene.image.shape[:2] for scene in scenes}
        if len(sizes) > 1:
            raise InputError(f"scenes have the sizes {sorted(sizes)}, wanted one size")
        count = max(len(scene.layers) for scene in scenes)
        light = np.zeros((len(scenes), count, *scenes[0].image.shape[:2], 4), dtype=np.float32)
        disparity = np.ones((len(scenes), count, *scenes[0].image.shape[:2]), dtype=np.float32)
        for row, scene in enumerate(scenes):
            disparity[row] /= np.float32(scene.focus_distance_m)  # a clear layer is in focus: nothing to blur
            for place, layer in enumerate(scene.layers):
                light[row, place], disparity[row, place] = layer.light, layer.disparity_dpt
        focus = torch.tensor([scene.focus_distance_m for scene in scenes], dtype=torch.float32)
        return cls(torch.from_numpy(light).movedim(-1, 2).contiguous(), torch.from_numpy(disparity), focus)

    def to(self, device: torch.device | str) -> SceneBatch:
        """Move all tensors to a device."""
        moved = {name: getattr(self, name).to(device) for name in ("light", "disparity_dpt", "focus_distance_m")}
        return replace(self, **moved)


def render_batch(batch: SceneBatch, bokeh_strengths: torch.Tensor, *, aperture: Aperture = DISK) -> torch.Tensor:
    """Render every scene of a batch at its own K's (Eq. 15, 26; occlusion by layers).

    Args:
        batch: The scenes.
        bokeh_strengths: K, 0 or more, ``(B, F)``, on the device of the batch.
        aperture: Shape of the lens opening; seen upright on both sides of the focus, so one whose `mirrored` form is
            another has no place here.

    Returns:
        Display values in [0, 1], ``(B, F, 3, H, W)``.

    Raises:
        InputError: If ``bokeh_strengths`` has another shape or values out of range, the aperture has an odd number of
            blades, or a radius is more than 512 px.
    """
    scenes, count = batch.light.shape[:2]
    width = batch.light.shape[-1]
    if bokeh_strengths.ndim != 2 or bokeh_strengths.shape[0] != scenes:
        raise InputError(f"bokeh_strengths has the shape {tuple(bokeh_strengths.shape)}, wanted ({scenes}, F)")
    if not bool(((bokeh_strengths >= 0) & bokeh_strengths.isfinite()).all()):
        raise InputError("bokeh_strengths has values below 0 or not finite, wanted finite K, 0 or more")
    if aperture.mirrored() != aperture:
        raise InputError(f"aperture has {aperture.blades} blades, wanted an even number of them or a disk")
    frames = bokeh_strengths.shape[1]
    px_per_dpt = (bokeh_strengths * (width / REFERENCE_WIDTH_PX))[:, :, None, None]
    focus_dpt = (1 / batch.focus_distance_m)[:, None, None]
    out = batch.light.new_zeros(scenes, frames, 3, *batch.light.shape[-2:])
    for place in range(count):
        light = batch.light[:, place]
        radius = px_per_dpt * (batch.disparity_dpt[:, place] - focus_dpt).abs()[:, None]
        # Where the layer is not, its radius must not ask for kernels that no visible pixel needs.
        largest = torch.where(light[:, None, 3] > 0, radius, 0).amax(dim=(2, 3), keepdim=True)
        radius = torch.minimum(radius, largest)
        whole = torch.cat([light, torch.ones_like(light[:, :1])], dim=1)
        spread = span_scatter(
            whole[:, None].expand(-1, frames, -1, -1, -1).flatten(0, 1), radius.flatten(0, 1), aperture=aperture
        ).unflatten(0, (scenes, frames))
        spread = (spread[:, :, :4] / spread[:, :, 4:].clamp(min=1e-6)).clamp(0, 1)
        out = out * (1 - spread[:, :, 3:]) + spread[:, :, :3]
    # At 0 the slope of the gamma is infinite, so black has the gradient of the darkest grey.
    return out.clamp(1e-8 if out.requires_grad else 0.0, 1) ** (1 / GAMMA)
