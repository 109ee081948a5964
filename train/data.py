"""The pool of procedural scenes that both stages are trained and evaluated on.

`python -m train.data --config train/configs/mini_stage1.yaml` renders the pool; a run that was cut off goes on where
it stopped. A training that finds only part of the shards trains on that part and looks again from time to time.
"""

from __future__ import annotations

import glob
import logging
import os
import zlib
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as fn

from bokehdepth.optics import MAX_BOKEH_STRENGTH
from bokehdepth.rendering.scenes import SceneGenerator
from train import config as configuration
from train.config import PoolConfig, Stage1Config

logger = logging.getLogger("train.data")
SPLITS = ("train", "held_out")


def split_files(patterns: list[str], hold_out: float, split: str) -> list[Path]:
    """Files that match the patterns, divided by a hash of their names, so that both splits are fixed."""
    files = sorted(Path(p) for pattern in patterns for p in glob.glob(os.path.expandvars(pattern)))
    if patterns and not files:
        raise ValueError(f"No file matches {patterns}.")
    held = [zlib.crc32(f.name.encode()) % 1000 < hold_out * 1000 for f in files]
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


class ScenePool:
    """Scenes of one split in memory, and random batches of them.

    Args:
        pool: its configuration.
        split: train or held_out.
    """

    def __init__(self, pool: PoolConfig, split: str) -> None:
        self.pool, self.split = pool, split
        self.arrays: dict[str, np.ndarray] = {}
        self._loaded: list[Path] = []
        self.refresh()
        if not self.arrays:
            raise ValueError(f"pool.folder is {pool.folder}, which has no {split} shard; run train.data first.")

    def refresh(self) -> None:
        """Takes in shards that have come since."""
        paths = sorted(Path(self.pool.folder).glob(f"{self.split}_{self.pool.size_px}px_*.npz"))
        new = [p for p in paths if p not in self._loaded]
        for path in new:
            with np.load(path, allow_pickle=False) as shard:
                for key in shard.files:
                    parts = [self.arrays[key]] if key in self.arrays else []
                    self.arrays[key] = np.concatenate([*parts, shard[key]])
        self._loaded += new

    def __len__(self) -> int:
        return len(self.arrays["image"]) if self.arrays else 0

    def batch(self, rows: np.ndarray, size_px: int, rng: np.random.Generator | None = None) -> dict[str, torch.Tensor]:
        """Scenes as tensors, augmented where a generator is given (mirror, exposure, white balance; all frames alike).

        Args:
            rows: (B,) scene numbers.
            size_px: side of the pictures; smaller than the pool's by area averaging.
            rng: source of the augmentation.

        Returns:
            image (B, 3, H, W) and bokeh (B, F, 3, H, W) in [0, 1], strength (B, F), depth_m (B, 1, H, W) and
            offset_dpt (B, 1, H, W) = |1/S1 - 1/depth|.
        """
        image = torch.from_numpy(self.arrays["image"][rows]).movedim(-1, -3).float() / 255
        bokeh = torch.from_numpy(self.arrays["bokeh"][rows]).movedim(-1, -3).float() / 255
        depth = torch.from_numpy(self.arrays["depth_m"][rows])[:, None]
        focus = torch.from_numpy(self.arrays["focus_distance_m"][rows])[:, None, None, None]
        frames = torch.cat([image[:, None], bokeh], dim=1)
        if rng is not None:
            mirrored = torch.from_numpy(rng.random(len(rows)) < 0.5)
            frames[mirrored], depth[mirrored] = frames[mirrored].flip(-1), depth[mirrored].flip(-1)
            # Gains in linear light commute with defocus, so the pair stays exact as long as nothing saturates.
            gain = rng.normal(0, 0.25, (len(rows), 1)) + rng.normal(0, 0.06, (len(rows), 3))
            gain = torch.from_numpy(np.exp(gain).astype(np.float32))[:, None, :, None, None]
            frames = (frames * gain ** (1 / 2.2)).clamp(max=1)
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


def main() -> None:
    """Renders the pool that a configuration names."""
    parser = configuration.parser(main.__doc__)
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    build_pool(configuration.load(Stage1Config, arguments.config, arguments.set).pool, arguments.workers)


if __name__ == "__main__":
    main()
