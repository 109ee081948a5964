"""Batches of the embedded Stage-1, of photographs and procedural scenes together."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as fn
from PIL import Image

from bokehdepth.camera.lens import MAX_BOKEH_STRENGTH
from train.checkpointing import step_rng
from train.config import PhaseConfig, Stage1Config
from train.data import ScenePool, colour_matrix, recoloured
from train.photos import MixedPhotos, Photograph, cut, scene_photo
from train.rows import rendered

_FOCUS_QUANTILE = 0.6  # of the disparity in the middle of a photograph without a marked subject
_MIDDLE = 0.5  # side of that middle
_TYPICAL_OFFSET_DPT = 0.25  # at least the median of what is behind a subject whose distance is guessed
_LARGEST_GAIN = 4.0
_HEIGHT_M = {"people_ccp": (1.5, 1.9), "cats_feral": (0.25, 0.4)}
"""What can be pasted into a photograph with depth: cut-outs of known height."""


class BokehPhotos:
    """Stage-1 batches: photo, K, the true disparity offset and, of some, the true render.

    The focus is on the subject: of scenes theirs, of masked photographs the mask, of other photographs with metric
    depth a quantile of the disparity in the middle, so that it can be guessed from the photo.

    Args:
        cfg: of the run.
        scenes: procedural scenes, or None.
        depth_model: guesses the distances behind a masked subject; has `infer`.
    """

    def __init__(self, cfg: Stage1Config, scenes: ScenePool | None, depth_model: Any) -> None:
        self.cfg = cfg
        self.photos = MixedPhotos(cfg.photos, scenes, cfg.augment, cfg.seed)
        pool = self.photos.pool
        self.depths, self.masked = [], []
        for number, photo in enumerate(pool.photos):
            if photo.mask is not None:
                pool.photos[number] = dataclasses.replace(photo, disparity=_guessed(photo, depth_model))
                self.masked.append(number)
            elif photo.metric and photo.disparity is not None and math.isfinite(photo.focal_px):
                self.depths.append(number)
        self.cut_outs = [n for n in self.masked if pool.photos[n].dataset in _HEIGHT_M]

    def __call__(self, step: int, phase: PhaseConfig, numbers: np.ndarray, samples: int) -> dict[str, Any]:
        """Draws a batch.

        Returns:
            image (B, 3, h, w) in [0, 1], offset_dpt (B, 1, h, w), known (B, 1, h, w) bool, strength (B,), seed (B,),
            target (B, 3, h, w), the true render of the first `picture_share` of the step's samples, and rendered (B,).
        """
        size, drawn = self.photos.size_of(step, phase), []
        count = math.ceil(self.cfg.picture_share * samples)
        for number in map(int, numbers):
            rng = step_rng(self.cfg.seed, step, number)
            sample = self._sample(rng, size)
            sample["strength"] = torch.tensor(rng.uniform(1.0, MAX_BOKEH_STRENGTH), dtype=torch.float32)
            sample["seed"] = torch.tensor(int(rng.integers(2**62)))
            matrix = colour_matrix(rng, self.cfg.augment)
            sample["image"] = recoloured(sample["image"][None], matrix[None])[0]
            sample["rendered"] = torch.tensor(number < count)
            sample["target"] = _render(sample) if number < count else sample["image"]
            drawn.append(sample)
        names = ("image", "offset_dpt", "known", "strength", "seed", "target", "rendered")
        return {name: torch.stack([sample[name] for sample in drawn]) for name in names}

    def _sample(self, rng: np.random.Generator, size: tuple[int, int]) -> dict[str, Any]:
        """image, disparity and offset_dpt (1, h, w), known (1, h, w), and focus in dioptres."""
        cfg, pool, scenes = self.photos.cfg, self.photos.pool, self.photos.scenes
        kind = rng.random()
        if scenes is not None and kind < cfg.scene_share:
            number = int(rng.integers(len(scenes)))
            focus = 1 / float(scenes.tensors["focus_distance_m"][number])
            photo = scene_photo(scenes, number, whole=True)
            return _focused(cut(photo, size, rng, cfg), focus)
        if kind < cfg.scene_share + self.cfg.mask_share:
            photo = pool.photos[self.masked[int(rng.integers(len(self.masked)))]]
            for _ in range(4):  # a crop that loses the subject, or everything else, shows nothing
                sample = cut(photo, size, rng, cfg)
                if 0.03 < float((sample["mask"] > 0.5).float().mean()) < 0.85:
                    break
            return _in_focus_within(sample)
        chosen = self.depths
        shares = pool.shares[chosen] / pool.shares[chosen].sum()
        sample = cut(pool.photos[chosen[int(rng.choice(len(chosen), p=shares))]], size, rng, cfg)
        if self.cut_outs and rng.random() < self.cfg.paste_share:
            sprite = pool.photos[self.cut_outs[int(rng.integers(len(self.cut_outs)))]]
            focus = _paste(sample, sprite, rng)
            if focus is not None:
                return _focused(sample, focus)
        return _focused(sample, _middle_focus(sample))

    def looks(self, count: int, size_px: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The first photographs with metric depth, square, and their offsets, for sample grids."""
        rng = np.random.default_rng(0)
        samples = [self._sample(rng, (size_px, size_px)) for _ in range(count)]
        return torch.stack([s["image"] for s in samples]), torch.stack([s["offset_dpt"] for s in samples])


@torch.no_grad()
def _guessed(photo: Photograph, model: Any) -> np.ndarray:
    """Disparity (H, W) in 1/m that a depth model sees in a photograph."""
    pixels = torch.from_numpy(np.array(photo.image)).permute(2, 0, 1)[None].float() / 255
    return (1 / model.infer(pixels).predicted_depth[0]).numpy()


def _focused(sample: dict[str, Any], focus_dpt: float) -> dict[str, Any]:
    """A sample whose offsets are those from one focus plane."""
    disparity = sample["disparity"].clamp(min=1e-4)
    return {"image": sample["image"], "disparity": disparity, "focus": focus_dpt, "known": sample["valid"],
            "offset_dpt": torch.where(sample["valid"], (disparity - focus_dpt).abs(), 0.0)}  # fmt: skip


def _in_focus_within(sample: dict[str, Any]) -> dict[str, Any]:
    """A sample whose masked subject is in focus all over, and what is around it as far from it as it seems to be."""
    subject = sample["mask"] > 0.5
    disparity = sample["disparity"].clamp(min=1e-4)
    if not bool(subject.any()) or bool(subject.all()):
        return _focused(sample, float(disparity.median()))
    focus = float(disparity[subject].median())
    typical = float((disparity[~subject] - focus).abs().median())
    gain = min(max(1.0, _TYPICAL_OFFSET_DPT / max(typical, 1e-3)), _LARGEST_GAIN)
    disparity = torch.where(subject, focus, (focus + gain * (disparity - focus)).clamp(min=1e-4))
    inner, outer = -fn.max_pool2d(-subject[None].float(), 5, 1, 2)[0], fn.max_pool2d(subject[None].float(), 5, 1, 2)[0]
    return {"image": sample["image"], "disparity": disparity, "focus": focus, "known": inner == outer,
            "offset_dpt": (disparity - focus).abs()}  # fmt: skip


def _middle_focus(sample: dict[str, Any]) -> float:
    """The focus in dioptres of a photograph without a marked subject."""
    height, width = sample["disparity"].shape[-2:]
    top, left = round(height * (1 - _MIDDLE) / 2), round(width * (1 - _MIDDLE) / 2)
    box = (..., slice(top, height - top), slice(left, width - left))
    values = sample["disparity"][box][sample["valid"][box]]
    if not len(values):
        values = sample["disparity"][sample["valid"]]
    return float(values.quantile(_FOCUS_QUANTILE)) if len(values) else 0.5


def _paste(sample: dict[str, Any], sprite: Photograph, rng: np.random.Generator) -> float | None:
    """Stands a cut-out of known height into a sample with depth, in place; its disparity, or None where none fits."""
    rows, columns = (np.flatnonzero(sprite.mask.any(axis)) for axis in (1, 0))
    box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    colours, alpha = sprite.image[box], sprite.mask[box]
    size, focal = sample["disparity"].shape[-2:], float(sample["focal_px"])
    height_m = rng.uniform(*_HEIGHT_M[sprite.dataset])
    for _ in range(6):
        tall = size[0] * rng.uniform(0.45, 1.3)
        distance = focal * height_m / tall
        wide = tall * alpha.shape[1] / alpha.shape[0]
        centre, base = size[1] * rng.uniform(0.2, 0.8), size[0] * rng.uniform(0.85, 1.0)
        if tall > 0.9 * size[0]:
            base = max(base, 0.15 * size[0] + tall * rng.uniform(0.8, 1.0))
        top, left = round(base - tall), round(centre - wide / 2)
        resized = Image.fromarray((alpha * 255).astype(np.uint8)).resize((max(1, round(wide)), max(1, round(tall))))
        cover = np.zeros(size, np.float32)
        layer = np.zeros((*size, 3), np.float32)
        y0, x0 = max(top, 0), max(left, 0)
        y1, x1 = min(top + resized.height, size[0]), min(left + resized.width, size[1])
        if y1 - y0 < 8 or x1 - x0 < 8:
            continue
        part = (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
        cover[y0:y1, x0:x1] = np.asarray(resized, np.float32)[part] / 255
        picture = Image.fromarray(colours).resize(resized.size, Image.Resampling.BICUBIC)
        layer[y0:y1, x0:x1] = np.asarray(picture, np.float32)[part] / 255
        seen = torch.from_numpy(cover > 0.5)[None]
        behind = sample["disparity"][seen & sample["valid"]]
        if len(behind) < 20 or float(behind.quantile(0.9)) > 0.95 / distance:  # something there is nearer
            continue
        opacity = torch.from_numpy(cover)[None]
        sample["image"] = torch.lerp(sample["image"], torch.from_numpy(layer).permute(2, 0, 1), opacity)
        sample["disparity"] = torch.where(seen, 1 / distance, sample["disparity"]).float()
        sample["valid"] = sample["valid"] | seen
        return 1 / distance
    return None


def _render(sample: dict[str, Any]) -> torch.Tensor:
    """The sample's photo through the lens (3, h, w)."""
    depth = np.where(sample["known"][0].numpy(), 1 / sample["disparity"][0].numpy(), np.nan).astype(np.float32)
    return rendered(sample["image"], depth, [float(sample["strength"])], 1 / max(sample["focus"], 1e-3))[0]
