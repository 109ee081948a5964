"""Real photographs in memory as training data: with depth, with depth of unknown scale, or with a subject's mask.

`PhotoPool` holds the rows of manifests, `MixedPhotos` draws batches of them and of procedural scenes. An enlarged crop
is the picture of a longer lens: focal lengths follow, and so does depth that is predicted for a canonical one.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
from train.sources import read_depth

logger = logging.getLogger("train.photos")
UNKNOWN = math.nan


@dataclass(frozen=True)
class Photograph:
    """A photograph and what is known of it.

    Attributes:
        name: its row.
        dataset: where it is from.
        scene: its place; splits keep it together.
        image: uint8 (H, W, 3).
        disparity: float32 (H, W) in 1/m, or without scale; NaN where there is no value; None without depth.
        metric: whether the disparity is in 1/m.
        focal_px: focal length; NaN where it is not known.
        mask: bool (H, W) of the subject, or None.
    """

    name: str
    dataset: str
    scene: str
    image: np.ndarray
    disparity: np.ndarray | None
    metric: bool
    focal_px: float
    mask: np.ndarray | None


def read_photograph(row: ManifestRow, longer_px: int) -> Photograph:
    """Reads a row's files, reduced to a longer side of at most `longer_px`.

    Raises:
        InputError: a file cannot be read, or differs in size from the photo.
    """
    picture = open_photo(row.image_path).image.convert("RGB")
    width, height = picture.size
    disparity = mask = None
    if row.depth_path is not None:
        unit = "m" if row.depth_unit == "m" else "dpt"
        depth = read_depth(row.depth_path, row.depth_scale, unit)
        disparity = 1 / depth
        _check_size(row, "depth", disparity.shape, (height, width))
    if row.mask_path is not None:
        with Image.open(row.mask_path) as file:
            mask = np.asarray(file.convert("L")) > 127
        _check_size(row, "mask", mask.shape, (height, width))
    scale = min(1.0, longer_px / max(height, width))
    size = (round(height * scale), round(width * scale))
    if scale < 1:
        picture = picture.resize(size[::-1], Image.Resampling.BICUBIC)
        rows, columns = (_nearest(0, whole, part) for whole, part in zip((height, width), size, strict=True))
        disparity = disparity if disparity is None else disparity[rows][:, columns]
        mask = mask if mask is None else mask[rows][:, columns]
    focal = UNKNOWN if row.intrinsics is None else math.sqrt(row.intrinsics.fx * row.intrinsics.fy) * scale
    image = np.asarray(picture)
    return Photograph(row.row_id, row.dataset or "", row.scene, image, disparity, row.depth_unit == "m", focal, mask)


def _check_size(row: ManifestRow, kind: str, size: tuple[int, ...], wanted: tuple[int, int]) -> None:
    if size != wanted:
        raise InputError(f"row {row.row_id}: `{kind}` must be of the photo's {wanted} px, got {size}.")


def _nearest(start: float, extent: float, count: int) -> np.ndarray:
    """Indices of the pixels under the centres of `count` equal parts of a stretch of pixels."""
    return (start + (np.arange(count) + 0.5) * extent / count).astype(np.intp)


class PhotoPool:
    """Photographs of manifests in memory, drawn by weights of their data sets.

    Args:
        cfg: which, and how heavily.
        wanted: "depth" keeps rows with depth, "mask" rows with a mask, "any" both.

    Raises:
        InputError: no row is left, or a weight names no data set.
    """

    def __init__(self, cfg: PhotosConfig, wanted: str = "any") -> None:
        rows = [row for name in cfg.files for row in read_manifest(os.path.expandvars(name))]
        rows = [row for row in rows if (row.split or "train") in cfg.splits and cfg.weights.get(row.dataset, 1.0) > 0]
        unknown = sorted(set(cfg.weights) - {row.dataset for row in rows if row.dataset} - _silenced(cfg))
        if unknown:
            raise InputError(f"`photos.weights` must name data sets of the manifests, got {unknown[0]!r}.")
        has = {"depth": lambda r: r.depth_path, "mask": lambda r: r.mask_path, "any": lambda r: True}[wanted]
        rows = [row for row in rows if row.image_path is not None and has(row)]
        if not rows:
            raise InputError(f"`photos.files` must have rows of splits {cfg.splits} with {wanted}, got none.")
        self.photos = []
        for row in rows:
            photo = read_photograph(row, cfg.longer_px)
            if photo.disparity is not None and not np.isfinite(photo.disparity).any():
                logger.warning("%s is left out: its depth has no value", photo.name)
                continue
            self.photos.append(photo)
        counts: dict[str, int] = {}
        for photo in self.photos:
            counts[photo.dataset] = counts.get(photo.dataset, 0) + 1
        # A data set's weight is shared by its photographs.
        each = {name: cfg.weights.get(name, float(count)) / count for name, count in counts.items()}
        shares = np.array([each[photo.dataset] for photo in self.photos])
        self.shares = shares / shares.sum()

    def __len__(self) -> int:
        return len(self.photos)


def _silenced(cfg: PhotosConfig) -> set[str]:
    return {name for name, weight in cfg.weights.items() if weight == 0}


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
        photos: cfg of the photographs; None draws scenes alone.
        scenes: procedural scenes, or None.
        augment: of colours.
        seed: of all draws.
        wanted: as `PhotoPool` says.
    """

    def __init__(
        self,
        photos: PhotosConfig | None,
        scenes: ScenePool | None,
        augment: PictureAugmentConfig,
        seed: int,
        wanted: str = "any",
    ) -> None:
        self.cfg, self.scenes, self.augment, self.seed = photos or PhotosConfig(files=["-"]), scenes, augment, seed
        self.pool = None if photos is None else PhotoPool(photos, wanted)
        self.scene_share = 1.0 if self.pool is None else 0.0 if scenes is None else photos.scene_share

    def size_of(self, step: int, phase: PhaseConfig) -> tuple[int, int]:
        """Height and width of a step's pictures: the phase's, upright in a share of the steps."""
        size = (phase.size_px, phase.width_px or phase.size_px)
        return size[::-1] if step_rng(self.seed, step, 2**20).random() < self.cfg.upright_share else size

    def draw(self, step: int, phase: PhaseConfig, numbers: Sequence[int]) -> dict[str, torch.Tensor]:
        """Samples as `cut` gives them, stacked (B, ...), recoloured; with `scene` (B,) of -1 or a scene's number."""
        size, samples, matrices = self.size_of(step, phase), [], []
        for number in numbers:
            rng = step_rng(self.seed, step, int(number))
            if rng.random() < self.scene_share:
                sample = self.scene(int(rng.integers(len(self.scenes))), size, rng)
            else:
                photo = self.pool.photos[int(rng.choice(len(self.pool), p=self.pool.shares))]
                sample = cut(photo, size, rng, self.cfg)
            samples.append(sample)
            matrices.append(colour_matrix(rng, self.augment))
        batch = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
        batch["image"] = recoloured(batch["image"], torch.stack(matrices))
        return batch

    def scene(self, number: int, size: tuple[int, int], rng: np.random.Generator) -> dict[str, Any]:
        """A random part of a procedural scene, in the form of `cut`; what a lone photo cannot tell is not valid."""
        tensors = self.scenes.tensors
        disparity = 1 / tensors["depth_m"][number].numpy()
        disparity = np.where(tensors["depth_known"][number].numpy(), disparity, np.nan).astype(np.float32)
        image, focal = tensors["image"][number].numpy(), float(tensors["focal_px"][number])
        photo = Photograph(str(number), "scenes", str(number), image, disparity, True, focal, None)
        return cut(photo, size, rng, self.cfg)

    def all(self, phase: PhaseConfig) -> Iterator[dict[str, torch.Tensor]]:
        """Every photograph once, its middle, in batches, without augmentation."""
        size = (phase.size_px, phase.width_px or phase.size_px)
        for begin in range(0, len(self.pool), phase.batch):
            samples = [centre(photo, size) for photo in self.pool.photos[begin : begin + phase.batch]]
            yield {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}


class _Middle:
    """Stands in for a generator where nothing is left to chance: the middle, not mirrored."""

    def uniform(self, low: float, high: float) -> float:
        return (low + high) / 2

    def normal(self, mean: float, deviation: float) -> float:
        return mean

    def random(self) -> float:
        return 1.0


def centre(photo: Photograph, size: tuple[int, int]) -> dict[str, Any]:
    """The largest part in the middle of a photograph at (height, width), as `cut` gives it."""
    return cut(photo, size, _Middle(), PhotosConfig(files=["-"]))
