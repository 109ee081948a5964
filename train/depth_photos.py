"""Batches of the embedded Stage-2, of photographs and procedural scenes together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as fn

from bokehdepth.camera.lens import MAX_BOKEH_STRENGTH
from train.checkpointing import step_rng
from train.config import PhaseConfig, Stage2Config
from train.data import ScenePool, lone_samples
from train.photos import MixedPhotos
from train.rows import rendered

_NEAREST_FOCUS_SHARE = 0.6  # of a picture's disparity quantiles: things in focus are mostly the nearer ones
_LEAST_STRENGTH = 3.0

Stage1 = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Photos (B, 3, h, w) and K (F,) to frames (B, F, 3, h, w)."""


class DepthPhotos:
    """Stage-2 batches of photographs with depth and of scenes, with rendered stacks, Stage-1's, or none.

    Args:
        cfg: of the run.
        scenes: procedural scenes, or None.
        stage1: makes Stage-1's frames; wanted with stack stage1.
    """

    def __init__(self, cfg: Stage2Config, scenes: ScenePool | None, stage1: Stage1 | None = None) -> None:
        self.cfg, self.stage1 = cfg, stage1
        self.photos = MixedPhotos(cfg.photos, scenes, cfg.augment, cfg.seed, with_depth=True)

    def __call__(self, step: int, phase: PhaseConfig, numbers: np.ndarray, samples: int) -> dict[str, Any]:
        """Draws a batch as `MixedPhotos.draw` gives it.

        Unless the stack is none it has bokeh (B, F, 3, h, w), strength (B, F) and lone (B,), who gets no stack.
        """
        cfg, batch = self.cfg, self.photos.draw(step, phase, numbers)
        if cfg.stack == "none":
            return batch
        common = step_rng(cfg.seed, step, 2**21)  # K and the kind of stack belong to the step
        strengths = np.asarray(cfg.strengths, np.float32)
        if common.random() < cfg.strength_share:
            drawn = common.uniform(_LEAST_STRENGTH, MAX_BOKEH_STRENGTH, len(cfg.strengths))
            strengths = np.sort(drawn).astype(np.float32)
        if cfg.stack == "stage1" and common.random() < cfg.generated_share:
            bokeh = self.stage1(batch["image"], torch.from_numpy(strengths))
        elif cfg.stack == "sharp":
            bokeh = batch["image"][:, None].expand(-1, len(strengths), -1, -1, -1)
        else:
            rngs = [step_rng(cfg.seed, step, int(number), 2) for number in numbers]
            bokeh = torch.stack([_frames(batch, i, strengths, rng) for i, rng in enumerate(rngs)])
        lone = lone_samples(cfg, step, numbers)
        return {**batch, "bokeh": bokeh, "strength": torch.from_numpy(strengths).expand(len(bokeh), -1), "lone": lone}


def _frames(
    batch: dict[str, torch.Tensor], number: int, strengths: np.ndarray, rng: np.random.Generator
) -> torch.Tensor:
    """Frames (F, 3, h, w) of one sample, rendered from its depth with the focus on a drawn value of it.

    Depth without scale is taken as it is, its median at 3 m, since K times an unknown scale is K of another lens.
    """
    disparity, valid = batch["disparity"][number, 0].numpy(), batch["valid"][number, 0].numpy()
    if valid.any() and not bool(batch["metric"][number]):
        disparity = disparity / (3 * np.median(disparity[valid]) + 1e-9)
    depth = np.where(valid, 1 / np.maximum(disparity, 1e-3), np.nan).astype(np.float32)
    quantile = 1 - rng.uniform(0, 1) * _NEAREST_FOCUS_SHARE if rng.random() < 0.7 else rng.uniform(0, 1)
    focus = 1 / max(float(np.quantile(1 / depth[valid], quantile)), 1e-3) if valid.any() else 1.0
    return rendered(batch["image"][number], depth, strengths, focus)


@torch.no_grad()
def frames_of(pipeline: Any) -> Stage1:
    """A pipeline's Stage-1 as a function of tensors, at the photos' own size."""

    def make(photos: torch.Tensor, strengths: torch.Tensor) -> torch.Tensor:
        area = photos.shape[-1] * photos.shape[-2]
        stacks = pipeline.generate_stack(
            list(photos), strengths.tolist(), max_area=area, restore=False, output_type="pt"
        ).images
        frames = torch.stack([frames.to(photos.device) for frames in stacks])
        if frames.shape[-2:] != photos.shape[-2:]:
            size = photos.shape[-2:]
            frames = fn.interpolate(frames.flatten(0, 1), size, mode="bilinear").unflatten(0, frames.shape[:2])
        return frames.clamp(0, 1)

    return make
