"""Real photographs in memory as training data: with depth, with depth of unknown scale, or with a subject's mask.

`PhotoPool` holds the rows of manifests, `MixedPhotos` draws batches of them and of procedural scenes. An enlarged crop
is the picture of a longer lens: focal lengths follow, and so does depth that is predicted for a canonical one.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image

from bokehdepth.errors import InputError
from bokehdepth.files.photos import open_photo
from bokehdepth.manifest import ManifestRow, read_manifest
from train.checkpointing import step_rng
from train.config import PhaseConfig, PhotosConfig, PictureAugmentConfig
from train.data import ScenePool, colour_matrix, recoloured
from train.row_checks import outcome, sorted_out, unusable
from train.rows import read_depth, read_mask


@dataclass(frozen=True)
class Photograph:
    """A photograph and what is known of it.

    Attributes:
        dataset: where it is from.
        image: uint8 (H, W, 3).
        disparity: float32 (H, W) in 1/m, or without scale; NaN where there is no value; None without depth.
        metric: whether the disparity is in 1/m.
        focal_px: focal length; NaN where it is not known.
        mask: bool (H, W) of the subject, or None.
    """

    dataset: str
    image: np.ndarray
    disparity: np.ndarray | None
    metric: bool
    focal_px: float
    mask: np.ndarray | None


def read_photograph(row: ManifestRow, longer_px: int) -> Photograph:
    """Reads a row's files, reduced to a longer side of at most `longer_px`.

    Raises:
        UnusableError: a file cannot be read, differs in size from the photo, or has no depth.
    """
    with unusable("a file cannot be used"):
        picture = open_photo(row.image_path).image
        disparity = None if row.depth_path is None else 1 / read_depth(row)
        mask = None if row.mask_path is None else read_mask(row)
    width, height = picture.size
    scale = min(1.0, longer_px / max(height, width))
    size = (round(height * scale), round(width * scale))
    if scale < 1:
        picture = picture.resize(size[::-1], Image.Resampling.BICUBIC)
        rows, columns = (_nearest(0, whole, part) for whole, part in zip((height, width), size, strict=True))
        disparity = disparity if disparity is None else disparity[rows][:, columns]
        mask = mask if mask is None else mask[rows][:, columns]
    focal = math.nan if row.intrinsics is None else math.sqrt(row.intrinsics.fx * row.intrinsics.fy) * scale
    return Photograph(row.dataset or "", np.asarray(picture), disparity, row.depth_unit == "m", focal, mask)


def scene_photo(scenes: ScenePool, number: int, whole: bool = False) -> Photograph:
    """A procedural scene; what a lone photo cannot tell of its depth has no value, unless it is taken whole."""
    tensors = scenes.tensors
    disparity = 1 / tensors["depth_m"][number].numpy()
    if not whole:
        disparity = np.where(tensors["depth_known"][number].numpy(), disparity, np.nan).astype(np.float32)
    image, focal_px = tensors["image"][number].numpy(), float(tensors["focal_px"][number])
    return Photograph("scenes", image, disparity, True, focal_px, None)


def _nearest(start: float, extent: float, count: int) -> np.ndarray:
    """Indices of the pixels under the centres of `count` equal parts of a stretch of pixels."""
    return (start + (np.arange(count) + 0.5) * extent / count).astype(np.intp)


class PhotoPool:
    """Photographs of manifests in memory, drawn by weights of their data sets.

    Args:
        cfg: which, and how heavily.
        with_depth: leave out rows without depth.

    Raises:
        InputError: no row is left, or a weight names no data set.
    """

    def __init__(self, cfg: PhotosConfig, with_depth: bool = False) -> None:
        rows = [row for name in cfg.files for row in read_manifest(os.path.expandvars(name))]
        rows = [row for row in rows if (row.split or "train") in cfg.splits and row.image_path is not None]
        unknown = sorted({name for name, weight in cfg.weights.items() if weight} - {row.dataset for row in rows})
        if unknown:
            raise InputError(f"`photos.weights` must name data sets of the manifests, got {unknown[0]!r}.")
        rows = [row for row in rows if cfg.weights.get(row.dataset, 1.0) > 0 and (row.depth_path or not with_depth)]
        read = partial(outcome, read_photograph)
        good, left_out = sorted_out(rows, [read(row, cfg.longer_px) for row in rows], "of the photographs")
        self.photos = [photo for _, photo in good]
        if not self.photos:
            kind, why = (" with depth" if with_depth else ""), (f" ({left_out})" if left_out else "")
            raise InputError(f"`photos.files` must have rows of splits {cfg.splits}{kind}, got none{why}.")
        counts: dict[str, int] = {}
        for photo in self.photos:
            counts[photo.dataset] = counts.get(photo.dataset, 0) + 1
        # A data set's weight is shared by its photographs.
        each = {name: cfg.weights.get(name, float(count)) / count for name, count in counts.items()}
        shares = np.array([each[photo.dataset] for photo in self.photos])
        self.shares = shares / shares.sum()

    def __len__(self) -> int:
        return len(self.photos)


def cut(photo: Photograph, size: tuple[int, int], rng: np.random.Generator, cfg: PhotosConfig) -> dict[str, Any]:
    """A random part of a photograph at (height, width), mirrored or not.

    Returns:
        image float32 (3, h, w) in [0, 1]; disparity (1, h, w), 0 where it is not valid; valid (1, h, w) bool; metric;
        focal_px, NaN where unknown; mask (1, h, w) float32, NaN without one.
    """
    height, width = photo.image.shape[:2]
    largest = min(height / size[0], width / size[1])
    zoom = math.exp(rng.uniform(math.log(cfg.zoom), 0.0)) if rng.random() < cfg.zoom_share else 1.0
    squeeze = math.exp(rng.normal(0.0, cfg.squeeze))  # how much wider than the target's aspect the part is
    tall = min(height, size[0] * largest * zoom * min(1.0, 1 / squeeze))
    wide = min(width, size[1] * largest * zoom * min(1.0, squeeze))
    top, left = rng.uniform(0, height - tall), rng.uniform(0, width - wide)
    box = (left, top, left + wide, top + tall)
    picture = Image.fromarray(photo.image).resize(size[::-1], Image.Resampling.BICUBIC, box=box, reducing_gap=2.0)
    rows, columns = _nearest(top, tall, size[0]), _nearest(left, wide, size[1])
    disparity = np.full(size, np.nan, np.float32)
    if photo.disparity is not None:
        disparity = photo.disparity[rows][:, columns]
    mask = np.full(size, np.nan, np.float32)
    if photo.mask is not None:
        mask = photo.mask[rows][:, columns].astype(np.float32)
    arrays = [np.array(picture, dtype=np.float32).transpose(2, 0, 1) / 255, disparity[None], mask[None]]
    if rng.random() < 0.5:
        arrays = [array[..., ::-1] for array in arrays]
    image, disparity, mask = (torch.from_numpy(np.ascontiguousarray(array)) for array in arrays)
    valid = torch.isfinite(disparity)
    focal = photo.focal_px * math.sqrt(size[0] / tall * size[1] / wide)
    return {
        "image": image,
        "disparity": torch.where(valid, disparity, 0.0),
        "valid": valid,
        "metric": torch.tensor(photo.metric and photo.disparity is not None),
        "focal_px": torch.tensor(focal, dtype=torch.float32),
        "mask": mask,
    }


class MixedPhotos:
    """Batches of photographs and procedural scenes in one form.

    Args:
        cfg: of the photographs.
        scenes: procedural scenes, or None.
        augment: of colours.
        seed: of all draws.
        with_depth: as `PhotoPool` says.
    """

    def __init__(
        self,
        cfg: PhotosConfig,
        scenes: ScenePool | None,
        augment: PictureAugmentConfig,
        seed: int,
        with_depth: bool = False,
    ) -> None:
        self.cfg, self.scenes, self.augment, self.seed = cfg, scenes, augment, seed
        self.pool = PhotoPool(cfg, with_depth)

    def size_of(self, step: int, phase: PhaseConfig) -> tuple[int, int]:
        """Height and width of a step's pictures: the phase's, upright in a share of the steps."""
        size = (phase.size_px, phase.width_px or phase.size_px)
        return size[::-1] if step_rng(self.seed, step, 2**20).random() < self.cfg.upright_share else size

    def draw(self, step: int, phase: PhaseConfig, numbers: Sequence[int]) -> dict[str, torch.Tensor]:
        """Samples as `cut` gives them, stacked (B, ...), recoloured; with `scene` (B,) of -1 or a scene's number."""
        size, samples, matrices = self.size_of(step, phase), [], []
        for number in numbers:
            rng = step_rng(self.seed, step, int(number))
            if rng.random() < self.cfg.scene_share and self.scenes is not None:
                photo = scene_photo(self.scenes, int(rng.integers(len(self.scenes))))
            else:
                photo = self.pool.photos[int(rng.choice(len(self.pool), p=self.pool.shares))]
            samples.append(cut(photo, size, rng, self.cfg))
            matrices.append(colour_matrix(rng, self.augment))
        batch = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
        batch["image"] = recoloured(batch["image"], torch.stack(matrices))
        return batch
