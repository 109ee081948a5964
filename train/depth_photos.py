"""Stage-2 of the embedded model on photographs and procedural scenes together: its batches, loss and network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as fn
from transformers.modeling_utils import PreTrainedModel

from bokehdepth.camera.lens import MAX_BOKEH_STRENGTH
from bokehdepth.rendering.refocus import render_from_depth
from train import losses
from train.checkpointing import step_rng
from train.config import PhaseConfig, Stage2Config
from train.data import ScenePool
from train.photos import MixedPhotos
from train.rows import fill_holes

_GRADIENT_SCALES = 4
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
        self.photos = MixedPhotos(cfg.photos, scenes, cfg.augment, cfg.seed, "depth")

    def __call__(self, step: int, phase: PhaseConfig, numbers: np.ndarray, samples: int) -> dict[str, Any]:
        """Draws a batch as `MixedPhotos.draw` gives it.

        Unless the stack is none it has bokeh (B, F, 3, h, w), strength (B, F) and lone (B,), who gets no stack.
        """
        return self._with_stack(self.photos.draw(step, phase, numbers), step, numbers)

    def _with_stack(self, batch: dict[str, Any], step: int, numbers: np.ndarray) -> dict[str, Any]:
        cfg = self.cfg
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
            bokeh = torch.stack([rendered(batch, i, strengths, rng) for i, rng in enumerate(rngs)])
        draws = [step_rng(cfg.seed, step, int(number), 1).random() for number in numbers]
        lone = torch.tensor([draw < cfg.lone_share for draw in draws])
        return {**batch, "bokeh": bokeh, "strength": torch.from_numpy(strengths).expand(len(bokeh), -1), "lone": lone}

    def held_out(self, phase: PhaseConfig) -> Iterator[dict[str, Any]]:
        """Batches of the middles of all photographs of the evaluation manifests, as `__call__` gives them."""
        for number, batch in enumerate(self._evaluation().all(phase)):
            yield self._with_stack(batch, 2**30 + number, np.arange(len(batch["image"])))

    def _evaluation(self) -> MixedPhotos:
        if not hasattr(self, "_kept"):
            self._kept = MixedPhotos(self.cfg.held_out_photos, None, self.cfg.augment, self.cfg.seed, "depth")
        return self._kept


def rendered(
    batch: dict[str, torch.Tensor], number: int, strengths: np.ndarray, rng: np.random.Generator
) -> torch.Tensor:
    """Frames (F, 3, h, w) of one sample, rendered from its depth with the focus on a drawn value of it.

    Depth without scale is taken as it is, its median at 3 m, since K times an unknown scale is K of another lens.
    """
    disparity, valid = batch["disparity"][number, 0].numpy(), batch["valid"][number, 0].numpy()
    if not valid.any():
        return batch["image"][number].expand(len(strengths), -1, -1, -1).clone()
    if not bool(batch["metric"][number]):
        disparity = disparity / (3 * np.median(disparity[valid]) + 1e-9)
    depth = fill_holes(np.where(valid, 1 / np.maximum(disparity, 1e-3), np.nan).astype(np.float32))
    quantile = 1 - rng.uniform(0, 1) * _NEAREST_FOCUS_SHARE if rng.random() < 0.7 else rng.uniform(0, 1)
    focus = 1 / max(float(np.quantile(1 / depth[valid], quantile)), 1e-3)
    picture = np.ascontiguousarray(batch["image"][number].permute(1, 2, 0).numpy())
    frames = [render_from_depth(picture, depth, float(strength), focus) for strength in strengths]
    return torch.stack([torch.from_numpy(frame).permute(2, 0, 1) for frame in frames])


class DepthPhotosNetwork(losses.SummedNetwork):
    """A depth model that knows cameras, and its loss on batches of `DepthPhotos`, in which every picture counts alike.

    Args:
        model: `BokehDepthEfficientNetForDepthEstimation`.
        cfg: of the run.
    """

    def __init__(self, model: PreTrainedModel, cfg: Stage2Config) -> None:
        super().__init__()
        self.model, self.cfg = model, cfg

    def counts(self, batch: dict[str, Any]) -> losses.Sums:
        """How many pictures there are."""
        return {"pictures": torch.tensor(float(len(batch["image"])))}

    def sums(self, batch: dict[str, Any]) -> losses.Sums:
        """Sums of all terms over a batch."""
        depth, camera = self.predict(batch)
        focal = batch["focal_px"]
        has_focal = torch.isfinite(focal)
        known = batch["metric"] & has_focal  # metres without a focal length are a scale of their own
        terms = losses.bounded_log_errors(
            depth, batch["disparity"][:, 0], batch["valid"][:, 0], known, self.cfg.far_m, _GRADIENT_SCALES
        )
        miss = (camera[:, 0, 0].log() - torch.where(has_focal, focal, 1.0).log()).abs()
        terms["focal"] = torch.where(has_focal, miss, 0.0)
        return {**self.counts(batch), **{name: values.sum() for name, values in terms.items()}}

    def terms(self, sums: losses.Sums) -> dict[str, torch.Tensor]:
        """The loss and its parts, means over all pictures; a part that a picture lacks is 0 there."""
        means = {name: value / sums["pictures"] for name, value in sums.items() if name != "pictures"}
        loss = means["metric"] + self.cfg.shape_weight * means["shape"] + self.cfg.gradient_weight * means["gradient"]
        return {"loss": loss + self.cfg.focal_weight * means["focal"], **means}

    def predict(self, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Depth (B, h, w) in metres, with the true focal lengths where they are known, and guessed cameras."""
        image = batch["image"] * 2 - 1
        alone = "bokeh" not in batch
        lone = batch.get("lone", torch.full((len(image),), alone, device=image.device))
        parts = []
        for chosen in (lone, ~lone):
            rows = chosen.nonzero()[:, 0]
            if not len(rows):
                continue
            pixels, extra = image[rows], {}
            if not bool(lone[rows[0]]):
                pixels = torch.cat([pixels[:, None], batch["bokeh"][rows] * 2 - 1], dim=1)
                strength = batch["strength"][rows]
                extra = {"bokeh_strengths": torch.cat([torch.zeros_like(strength[:, :1]), strength], dim=1)}
            output = self.model(pixel_values=pixels, **extra)
            parts.append((rows, output.predicted_depth, output.intrinsics))
        order = torch.cat([rows for rows, _, _ in parts]).argsort()
        depth = torch.cat([d for _, d, _ in parts])[order]
        camera = torch.cat([c for _, _, c in parts])[order]
        if not alone and bool(lone.all()):  # data parallel training wants every trained tensor in every part
            depth = depth + 0 * sum(p.sum() for p in self.model.dsfa.parameters() if p.requires_grad)
        focal, guessed = batch["focal_px"], camera[:, 0, 0]
        scale = torch.where(torch.isfinite(focal), torch.where(torch.isfinite(focal), focal, 1.0) / guessed, 1.0)
        return depth * scale[:, None, None], camera


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
