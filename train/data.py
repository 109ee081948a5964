"""The pool of procedural scenes that both stages are trained and evaluated on.

`python -m train.data --config train/configs/mini_stage1.yaml` renders the pool; a run that was cut off goes on where
it stopped. A training that finds only part of the shards trains on that part.
"""

from __future__ import annotations

import dataclasses
import glob
import logging
import os
import zlib
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as fn

from bokehdepth.errors import InputError
from bokehdepth.optics import MAX_BOKEH_STRENGTH
from bokehdepth.rendering.scenes import SceneGenerator
from train import config as configuration
from train.checkpointing import step_rng
from train.config import AugmentConfig, PhaseConfig, PoolConfig, Stage1Config, Stage2Config

logger = logging.getLogger("train.data")
SPLITS = ("train", "held_out")


def split_files(patterns: list[str], hold_out: float, split: str) -> list[Path]:
    """Files that match the patterns, divided by a hash of their names, so that both splits are fixed.

    What stands before `--` or the suffix decides: a photograph and what was cut out of it are in one split.
    """
    files = sorted(Path(p) for pattern in patterns for p in glob.glob(os.path.expandvars(pattern)))
    if patterns and not files:
        raise InputError(
            f"photos, mattes, backdrops or portraits is {patterns}, which no file matches; wanted patterns of files."
        )
    held = [zlib.crc32(f.stem.split("--")[0].encode()) % 1000 < hold_out * 1000 for f in files]
    return [f for f, h in zip(files, held, strict=True) if h == (split == "held_out")]


def shard_path(pool: PoolConfig, split: str, index: int) -> Path:
    """Where shard `index` of a split lies."""
    return Path(pool.folder) / f"{split}_{pool.size_px}px_{index:04d}.npz"


def render_shard(pool: PoolConfig, split: str, index: int) -> None:
    """Renders the scenes of one shard and writes them under a temporary name first."""
    path = shard_path(pool, split, index)
    if path.exists():
        return
    total = pool.scenes if split == "train" else pool.held_out_scenes
    generator = SceneGenerator(
        (pool.size_px, pool.size_px),
        photos=split_files(pool.photos, pool.hold_out, split),
        mattes=split_files(pool.mattes, pool.hold_out, split),
        backdrops=split_files(pool.backdrops, pool.hold_out, split),
        portraits=split_files(pool.portraits, pool.hold_out, split),
        seed=pool.seed + (0 if split == "train" else 1_000_003),
    )
    rows: dict[str, list] = {k: [] for k in ("image", "bokeh", "strength", "depth_m", "focus_distance_m", "kind")}
    for number in range(index * pool.shard, min((index + 1) * pool.shard, total)):
        scene = generator.generate(number)
        rng = np.random.default_rng([pool.seed, number, SPLITS.index(split)])
        stratum = MAX_BOKEH_STRENGTH / pool.renders
        strengths = [float(rng.uniform(max(i * stratum, 1.0), (i + 1) * stratum)) for i in range(pool.renders)]
        if split == "held_out":
            strengths = [(i + 1) * stratum for i in range(pool.renders)]
        rows["image"].append(np.round(scene.image * 255).astype(np.uint8))
        rows["bokeh"].append(np.stack([np.round(scene.render(k) * 255).astype(np.uint8) for k in strengths]))
        rows["strength"].append(np.asarray(strengths, np.float32))
        rows["depth_m"].append(scene.depth_m.astype(np.float32))
        rows["focus_distance_m"].append(np.float32(scene.focus_distance_m))
        rows["kind"].append(scene.kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}_{path.name}")
    np.savez(temporary, **{k: np.stack(v) if k != "kind" else np.asarray(v) for k, v in rows.items()})
    temporary.rename(path)


def build_pool(pool: PoolConfig, workers: int) -> None:
    """Renders every missing shard, the held-out split first."""
    jobs = [("held_out", i) for i in range(-(-pool.held_out_scenes // pool.shard))]
    jobs += [("train", i) for i in range(-(-pool.scenes // pool.shard))]
    with ProcessPoolExecutor(workers) as executor:
        for done, _ in enumerate(executor.map(_render_job, [(pool, *job) for job in jobs]), 1):
            logger.info("shard %d of %d", done, len(jobs))


def _render_job(job: tuple[PoolConfig, str, int]) -> None:
    render_shard(*job)


def _scenes_in(path: Path) -> int:
    with np.load(path, allow_pickle=False) as shard:
        return len(shard["focus_distance_m"])


def _roomy(dtype: np.dtype) -> np.dtype:
    """Names of kinds are as wide as the longest of their shard."""
    return np.dtype("U32") if dtype.kind == "U" else dtype


class ScenePool:
    """Scenes of one split in memory, and random batches of them.

    Args:
        pool: its configuration.
        split: train or held_out.
    """

    def __init__(self, pool: PoolConfig, split: str) -> None:
        self.pool, self.split = pool, split
        paths = sorted(Path(pool.folder).glob(f"{split}_{pool.size_px}px_*.npz"))
        if not paths:
            raise InputError(f"pool.folder is {pool.folder!r}, which has no {split} shard; run train.data first.")
        counts = [_scenes_in(path) for path in paths]
        self.arrays: dict[str, np.ndarray] = {}
        for path, end, count in zip(paths, np.cumsum(counts), counts, strict=True):
            with np.load(path, allow_pickle=False) as shard:
                for key in shard.files:
                    values = shard[key]
                    if key not in self.arrays:  # one block for all: a large pool is never in memory twice
                        self.arrays[key] = np.empty((sum(counts), *values.shape[1:]), _roomy(values.dtype))
                    self.arrays[key][end - count : end] = values

    def __len__(self) -> int:
        return len(self.arrays["image"])

    def batch(
        self,
        rows: np.ndarray,
        size_px: int,
        rngs: Sequence[np.random.Generator] | None = None,
        augment: AugmentConfig | None = None,
    ) -> dict[str, torch.Tensor]:
        """Scenes as tensors, augmented where generators are given (mirror, exposure, white balance; frames alike).

        Args:
            rows: (B,) scene numbers.
            size_px: side of the pictures; smaller than the pool's by area averaging.
            rngs: (B,) source of each scene's augmentation.
            augment: how much of it; None takes the defaults.

        Returns:
            image (B, 3, H, W) and bokeh (B, F, 3, H, W) in [0, 1], strength (B, F), depth_m (B, 1, H, W) and
            offset_dpt (B, 1, H, W) = |1/S1 - 1/depth|.
        """
        image = torch.from_numpy(self.arrays["image"][rows]).movedim(-1, -3).float() / 255
        bokeh = torch.from_numpy(self.arrays["bokeh"][rows]).movedim(-1, -3).float() / 255
        depth = torch.from_numpy(self.arrays["depth_m"][rows])[:, None]
        focus = torch.from_numpy(self.arrays["focus_distance_m"][rows])[:, None, None, None]
        frames = torch.cat([image[:, None], bokeh], dim=1)
        if rngs is not None:
            augment = augment or AugmentConfig()
            mirrored = torch.tensor([rng.random() < 0.5 and augment.mirror for rng in rngs])
            frames[mirrored], depth[mirrored] = frames[mirrored].flip(-1), depth[mirrored].flip(-1)
            frames = (frames * torch.stack([display_gain(rng, augment) for rng in rngs])[:, None]).clamp(max=1)
        disparity = 1 / depth
        if size_px != self.pool.size_px:
            flat = frames.flatten(0, 1)
            flat = fn.interpolate(flat, size=(size_px, size_px), mode="bilinear", antialias=True, align_corners=False)
            frames = flat.unflatten(0, frames.shape[:2])
            disparity = fn.interpolate(disparity, size=(size_px, size_px), mode="nearest-exact")
        return {
            "image": frames[:, 0],
            "bokeh": frames[:, 1:],
            "strength": torch.from_numpy(self.arrays["strength"][rows]),
            "depth_m": 1 / disparity,
            "offset_dpt": (disparity - 1 / focus).abs(),
        }


def display_gain(rng: np.random.Generator, augment: AugmentConfig) -> torch.Tensor:
    """Factor (3, 1, 1) on display values: a random exposure and white balance.

    Gains in linear light commute with defocus, so a pair stays exact as long as nothing saturates.
    """
    gain = augment.gain * rng.normal() + augment.white_balance * rng.normal(size=3)
    return torch.from_numpy(np.exp(gain / 2.2).astype(np.float32))[:, None, None]


def fill_pool(pool: PoolConfig) -> None:
    """Renders what is missing, in this process, where the configuration asks for it."""
    if pool.render_missing:
        for split, total in (("held_out", pool.held_out_scenes), ("train", pool.scenes)):
            for index in range(-(-total // pool.shard)):
                render_shard(pool, split, index)


def is_text_step(step: int, share: float) -> bool:
    """Whether a step is text-to-image: evenly spread, so that a share of 0.5 alternates."""
    return int((step + 1) * share) > int(step * share)


class PoolPairs:
    """Stage-1 batches from a pool: sharp photo and render (image-to-image), or renders of one scene in groups.

    A text-to-image group holds the sharp photo (K = 0), which is its pivot, and every render of the scene, with the
    same augmentation, noise and noise level.

    Args:
        cfg: of the run.
    """

    def __init__(self, cfg: Stage1Config) -> None:
        self.cfg, self.pool = cfg, ScenePool(cfg.pool, "train")
        self.group = 1 + self.pool.arrays["bokeh"].shape[1]
        for phase in cfg.phases:
            if cfg.text_share(phase) and phase.batch % self.group:
                raise InputError(
                    f"batch is {phase.batch} in a phase with text-to-image steps; wanted a multiple of {self.group}, "
                    "the pictures of one group."
                )

    def __call__(self, step: int, phase: PhaseConfig, numbers: np.ndarray) -> dict[str, Any]:
        """Draws a batch.

        Args:
            step: of the run.
            phase: that the step belongs to.
            numbers: (B,) of the samples within the step.

        Returns:
            image and target (B, 3, H, W) in [0, 1], strength (B,), offset_dpt (B, 1, H, W), seed (B,) of the noise,
            drop_strength (B,), pivot_rows (B,) within the batch, and text_to_image.
        """
        text = is_text_step(step, self.cfg.text_share(phase))
        places = numbers // self.group if text else numbers
        rngs = [step_rng(self.cfg.seed, step, int(place)) for place in places]
        rows = np.array([rng.integers(len(self.pool)) for rng in rngs])
        seeds = torch.tensor([int(rng.integers(2**62)) for rng in rngs])
        frames = torch.tensor([int(rng.integers(self.group - 1)) for rng in rngs])
        grounded = torch.tensor([rng.random() < self.cfg.grounded_share for rng in rngs])
        batch = self.pool.batch(rows, phase.size_px, rngs)
        itself = torch.arange(len(rows))
        if text:
            frames = torch.from_numpy(numbers % self.group) - 1  # -1 is the sharp photo
        sharp = frames < 0
        return {
            "text_to_image": text,
            "image": batch["image"],
            "target": torch.where(sharp[:, None, None, None], batch["image"], batch["bokeh"][itself, frames]),
            "strength": torch.where(sharp, 0.0, batch["strength"][itself, frames]),
            "offset_dpt": batch["offset_dpt"],
            "seed": seeds,
            "drop_strength": strength_drops(self.cfg, step, numbers, text),
            "pivot_rows": torch.where(grounded, itself - frames - 1, itself) if text else itself,
        }

    def looks(self, count: int, size_px: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The first photos (B, 3, H, W) and their offsets (B, 1, H, W) in dioptres, for sample grids."""
        batch = self.pool.batch(np.arange(min(count, len(self.pool))), size_px)
        return batch["image"], batch["offset_dpt"]


def strength_drops(cfg: Stage1Config, step: int, numbers: np.ndarray, text: bool) -> torch.Tensor:
    """Which samples (B,) get no K: a share of those of text-to-image steps."""
    share = cfg.prompts.strength_dropout if text else 0.0
    return torch.tensor([step_rng(cfg.seed, step, int(n), 1).random() < share for n in numbers])


class PoolStacks:
    """Stage-2 batches from a pool: photo, stack, K and depth; the same rows whatever the kind of stack.

    Args:
        cfg: of the run.
    """

    def __init__(self, cfg: Stage2Config) -> None:
        self.cfg, self.rendered = cfg, ScenePool(cfg.pool, "train")
        self.generated = None
        if cfg.stack == "stage1":
            self.generated = ScenePool(dataclasses.replace(cfg.pool, folder=cfg.generated), "train")

    def __call__(self, step: int, phase: PhaseConfig, numbers: np.ndarray) -> dict[str, Any]:
        """Draws a batch.

        Args:
            step: of the run.
            phase: its only one.
            numbers: (B,) of the samples within the step.

        Returns:
            image (B, 3, H, W) and bokeh (B, F, 3, H, W) in [0, 1], strength (B, F), depth_m (B, 1, H, W) and valid
            (B, 1, H, W).
        """
        pool = self.rendered
        if self.generated is not None and step_rng(self.cfg.seed, step).random() < self.cfg.generated_share:
            pool = self.generated
        rngs = [step_rng(self.cfg.seed, step, int(n)) for n in numbers]
        rows = np.array([rng.integers(len(pool)) for rng in rngs])
        batch = pool.batch(rows, phase.size_px, rngs, self.cfg.augment)
        stacks = [
            choose_frames(bokeh, strength, rng, self.cfg.augment)
            for bokeh, strength, rng in zip(batch["bokeh"], batch["strength"], rngs, strict=True)
        ]
        depth = batch["depth_m"]
        return {
            "image": batch["image"],
            "bokeh": torch.stack([bokeh for bokeh, _ in stacks]),
            "strength": torch.stack([strength for _, strength in stacks]),
            "depth_m": depth,
            "valid": (depth >= self.cfg.min_depth_m) & (depth <= self.cfg.max_depth_m),
        }

    def looks(self, count: int) -> dict[str, torch.Tensor]:
        """The first scenes as a batch without augmentation, for sample grids."""
        pool = self.generated or self.rendered
        return pool.batch(np.arange(min(count, len(pool))), self.cfg.size_px)


def choose_frames(
    bokeh: torch.Tensor, strength: torch.Tensor, rng: np.random.Generator, augment: AugmentConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """A random choice of a stack's frames (F, 3, H, W) in random order, and their K (F,) with jitter.

    The jitter's product ends at the trained range, since a lens beyond it is refused at inference too.
    """
    if augment.frames is not None:
        if augment.frames > len(bokeh):
            raise InputError(f"augment.frames is {augment.frames}; wanted at most the stack's {len(bokeh)} frames.")
        chosen = torch.from_numpy(rng.permutation(len(bokeh))[: augment.frames])
        bokeh, strength = bokeh[chosen], strength[chosen]
    if augment.strength_jitter:
        factor = np.exp(augment.strength_jitter * rng.normal(size=len(strength))).astype(np.float32)
        strength = (strength * torch.from_numpy(factor)).clamp(max=MAX_BOKEH_STRENGTH)
    return bokeh, strength


def main() -> None:
    """Renders the pool that a configuration names."""
    parser = configuration.parser(main.__doc__)
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    cfg = configuration.load(Stage1Config, arguments.config, arguments.set)
    if cfg.pool is None:
        raise InputError(f"config is {arguments.config!r}, which has no pool; wanted one to render.")
    build_pool(cfg.pool, arguments.workers)


if __name__ == "__main__":
    with configuration.one_line_errors():
        main()
