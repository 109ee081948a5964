"""The pool of procedural scenes that both stages are trained and evaluated on.

`python -m train.data --config train/configs/mini_stage1.yaml` renders the pool; a run that was cut off goes on where
it stopped. A training that finds only part of the shards trains on that part.
"""

from __future__ import annotations

import glob
import itertools
import logging
import os
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as fn

from bokehdepth.camera.lens import MAX_BOKEH_STRENGTH
from bokehdepth.errors import InputError
from bokehdepth.files.atomic import write_file
from bokehdepth.modeling_mini_flux import GAMMA
from datasets_scripts.scenes.generator import SceneGenerator
from datasets_scripts.scenes.materials import hue_chroma_matrix
from train import config as configuration
from train.checkpointing import step_rng
from train.config import (
    AugmentConfig,
    PhaseConfig,
    PictureAugmentConfig,
    PoolConfig,
    Stage1Config,
    Stage2Config,
)

logger = logging.getLogger("train.data")
SPLITS = ("train", "held_out")
_KIND = "U32"
_ARRAYS = ("image", "bokeh", "strength", "depth_m", "depth_known", "focus_distance_m", "focal_px")


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
        kinds=pool.kinds,
    )
    rows: dict[str, list] = {name: [] for name in (*_ARRAYS, "kind")}
    for number in range(index * pool.shard, min((index + 1) * pool.shard, total)):
        scene = generator.generate(number)
        rng = np.random.default_rng([pool.seed, number, SPLITS.index(split)])
        stratum = MAX_BOKEH_STRENGTH / max(pool.renders, 1)
        strengths = [float(rng.uniform(max(i * stratum, 1.0), (i + 1) * stratum)) for i in range(pool.renders)]
        if split == "held_out":
            strengths = [(i + 1) * stratum for i in range(pool.renders)]
        rows["image"].append(np.round(scene.image * 255).astype(np.uint8))
        frames = [np.round(scene.render(k) * 255).astype(np.uint8) for k in strengths]
        rows["bokeh"].append(np.stack(frames) if frames else np.empty((0, *scene.image.shape), np.uint8))
        rows["strength"].append(np.asarray(strengths, np.float32))
        rows["depth_m"].append(scene.depth_m.astype(np.float32))
        rows["focus_distance_m"].append(np.float32(scene.focus_distance_m))
        rows["focal_px"].append(np.float32(scene.focal_length_px))
        rows["depth_known"].append(scene.depth_known)
        rows["kind"].append(scene.kind)
    arrays = {k: np.stack(v) if k != "kind" else np.asarray(v) for k, v in rows.items()}
    write_file(path, lambda file: np.savez(file, **arrays), overwrite=True)


def _shards(pool: PoolConfig) -> list[tuple[PoolConfig, str, int]]:
    """Every shard of a pool as arguments of `render_shard`, the held-out split first."""
    totals = (("held_out", pool.held_out_scenes), ("train", pool.scenes))
    return [(pool, split, index) for split, total in totals for index in range(-(-total // pool.shard))]


def build_pool(pool: PoolConfig, workers: int) -> None:
    """Renders every missing shard, the held-out split first."""
    jobs = _shards(pool)
    with ProcessPoolExecutor(workers) as executor:
        for done, _ in enumerate(executor.map(render_shard, *zip(*jobs, strict=True)), 1):
            logger.info("shard %d of %d", done, len(jobs))


class ScenePool:
    """Scenes of one split in memory, and random batches of them.

    `tensors` holds image uint8 (S, H, W, 3), bokeh uint8 (S, F, H, W, 3), depth_m (S, H, W), depth_known bool
    (S, H, W), strength (S, F), focus_distance_m (S,) and focal_px (S,), one block each; `kinds` (S,) are the scenes'
    kinds.

    Args:
        pool: its configuration.
        split: train or held_out.

    Raises:
        InputError: no shard is there, or one lacks an array or has depth that is not above 0.
    """

    def __init__(self, pool: PoolConfig, split: str) -> None:
        self.pool, self.split = pool, split
        self.tensors: dict[str, torch.Tensor] = {}
        total = pool.scenes if split == "train" else pool.held_out_scenes
        paths = [path for path in (shard_path(*job) for job in _shards(pool) if job[1] == split) if path.exists()]
        if not paths:
            raise InputError(f"pool.folder is {pool.folder!r}, which has no {split} shard; run train.data first.")
        counts = []
        for path in paths:
            with np.load(path, allow_pickle=False) as shard:
                counts.append(len(shard["focus_distance_m"]))
        self._scenes = min(sum(counts), total)
        self.kinds = np.empty(self._scenes, _KIND)
        for path, begin in zip(paths, itertools.accumulate(counts, initial=0), strict=False):
            self._load(path, begin)

    def __len__(self) -> int:
        """Scenes that are loaded."""
        return self._scenes

    def _load(self, path: Path, begin: int) -> None:
        """Puts a shard into blocks of the pool's size, behind others: a large pool is never there twice."""
        with np.load(path, allow_pickle=False) as shard:
            lacking = sorted({*_ARRAYS, "kind"} - set(shard.files))
            if lacking:
                raise InputError(
                    f"pool.folder must hold shards with {', '.join(lacking)}, got {str(path)!r} of another version; "
                    "delete its shards and run train.data again."
                )
            end = min(begin + len(shard["kind"]), self._scenes)
            self.kinds[begin:end] = shard["kind"][: end - begin]
            for key in _ARRAYS:
                values = torch.from_numpy(shard[key][: end - begin])
                if key == "depth_m" and not bool((values > 0).all()):
                    odd = values[~(values > 0)][0].item()
                    raise InputError(f"depth_m of {str(path)!r} must be above 0 everywhere, got {odd}.")
                if key not in self.tensors:
                    size = (self._scenes, *values.shape[1:])
                    self.tensors[key] = torch.empty(size, dtype=values.dtype)
                self.tensors[key][begin:end] = values

    def batch(
        self,
        rows: np.ndarray,
        size_px: int,
        rngs: Sequence[np.random.Generator] | None = None,
        augment: PictureAugmentConfig | None = None,
        frames: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Scenes as tensors, augmented where generators are given (mirror image and colours; frames alike).

        Args:
            rows: (B,) scene numbers.
            size_px: side of the pictures; smaller than the pool's by area averaging.
            rngs: (B,) source of each scene's augmentation.
            augment: how much of it; None takes the defaults.
            frames: (B, F) numbers of the frames that are wanted of each scene, in this order; None takes all.

        Returns:
            image (B, 3, H, W) and bokeh (B, F, 3, H, W) in [0, 1], strength (B, F), depth_m (B, 1, H, W),
            depth_known bool (B, 1, H, W), focal_px (B,) at `size_px`, and offset_dpt (B, 1, H, W) = |1/S1 - 1/depth|.
        """
        places = torch.as_tensor(rows)
        chosen = slice(None) if frames is None else frames
        each = places if frames is None else places[:, None]
        strength = self.tensors["strength"][each, chosen]
        image = self.tensors["image"][places].movedim(-1, -3).float() / 255
        bokeh = self.tensors["bokeh"][each, chosen].movedim(-1, -3).float() / 255
        depth = self.tensors["depth_m"][places][:, None]
        known = self.tensors["depth_known"][places][:, None]
        focus = self.tensors["focus_distance_m"][places][:, None, None, None]
        pictures = torch.cat([image[:, None], bokeh], dim=1)
        if rngs is not None:
            augment = augment or PictureAugmentConfig()
            mirrored = torch.tensor([rng.random() < 0.5 and augment.mirror for rng in rngs])
            matrices = torch.stack([colour_matrix(rng, augment) for rng in rngs])
            mirrored = mirrored[:, None, None, None]
            pictures = torch.where(mirrored[..., None], pictures.flip(-1), pictures)
            depth = torch.where(mirrored, depth.flip(-1), depth)
            known = torch.where(mirrored, known.flip(-1), known)
            pictures = recoloured(pictures, matrices)
        disparity = 1 / depth
        if size_px != self.pool.size_px:
            flat = pictures.flatten(0, 1)
            flat = fn.interpolate(flat, size=(size_px, size_px), mode="bilinear", antialias=True, align_corners=False)
            flat = flat.clamp(max=1)  # weights that sum to one up to rounding can lift white a last digit above 1
            pictures = flat.unflatten(0, pictures.shape[:2])
            disparity = fn.interpolate(disparity, size=(size_px, size_px), mode="nearest-exact")
            known = fn.interpolate(known.float(), size=(size_px, size_px), mode="nearest-exact").bool()
        return {
            "image": pictures[:, 0],
            "bokeh": pictures[:, 1:],
            "strength": strength,
            "depth_m": 1 / disparity,
            "depth_known": known,
            "focal_px": self.tensors["focal_px"][places] * (size_px / self.pool.size_px),
            "offset_dpt": (disparity - 1 / focus).abs(),
        }


def colour_matrix(rng: np.random.Generator, augment: PictureAugmentConfig) -> torch.Tensor:
    """Matrix (3, 3) on linear light: a random exposure, white balance, hue and chroma.

    A matrix on linear light commutes with defocus, so a pair stays exact as long as nothing saturates.
    """
    gain = augment.gain * rng.normal() + augment.white_balance * rng.normal(size=3)
    matrix = np.diag(np.exp(gain))
    if augment.hue or augment.chroma:
        turn, chroma = rng.normal(0, augment.hue), np.exp(rng.normal(0, augment.chroma))
        matrix = matrix @ hue_chroma_matrix(turn, chroma)
    return torch.from_numpy(matrix.astype(np.float32))


def recoloured(pictures: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    """Display values (B, ..., 3, H, W) in [0, 1], their linear light multiplied with (B, 3, 3) from the left."""
    gains = matrices.diagonal(dim1=1, dim2=2)
    shape = (len(gains), *[1] * (pictures.ndim - 4), 3, 1, 1)
    if torch.equal(matrices, torch.diag_embed(gains)):  # gains act on display values too
        return (pictures * gains.pow(1 / GAMMA).view(shape)).clamp(max=1)
    with torch.autocast(pictures.device.type, enabled=False):  # a training's would round the pictures to bfloat16
        light = torch.einsum("bij,b...jhw->b...ihw", matrices, pictures.pow(GAMMA))
    return light.clamp(0, 1).pow(1 / GAMMA)


def fill_pool(pool: PoolConfig, process: int = 0, processes: int = 1, wait: Callable[[], None] | None = None) -> None:
    """Renders what is missing, where the configuration asks for it.

    Args:
        pool: its configuration.
        process: number of this process, which renders its share of the shards.
        processes: how many share them.
        wait: returns when all of them have come so far; None for one process.

    Raises:
        InputError: the processes do not see each other's shards.
    """
    if not pool.render_missing:
        return
    jobs = _shards(pool)
    for job in jobs[process::processes]:
        render_shard(*job)
    if wait is not None:
        wait()
    lost = [path for path in (shard_path(*job) for job in jobs) if not path.exists()]
    if lost:
        raise InputError(f"`pool.folder` must be one folder for all processes, got one without {str(lost[0])!r}.")


def is_text_step(step: int, share: float) -> bool:
    """Whether a step is text-to-image: evenly spread, so that a share of 0.5 alternates."""
    return int((step + 1) * share) > int(step * share)


def _check_renders(pool: PoolConfig, user: str) -> None:
    if not pool.renders:
        raise InputError(f"pool.renders must be 1 or more for {user}, got 0.")


class PoolPairs:
    """Stage-1 batches from a pool: sharp photo and render (image-to-image), or renders of one scene in groups.

    A text-to-image group holds the sharp photo (K = 0), which is its pivot, and every render of the scene, with the
    same augmentation, noise and noise level.

    Args:
        cfg: of the run.
    """

    def __init__(self, cfg: Stage1Config) -> None:
        _check_renders(cfg.pool, "Stage-1")
        self.cfg, self.pool = cfg, ScenePool(cfg.pool, "train")
        self.group = 1 + self.pool.tensors["bokeh"].shape[1]
        for phase in cfg.phases:
            if cfg.text_share(phase) and phase.batch % self.group:
                raise InputError(
                    f"batch is {phase.batch} in a phase with text-to-image steps; wanted a multiple of {self.group}, "
                    "the pictures of one group."
                )

    def __call__(
        self, step: int, phase: PhaseConfig, numbers: np.ndarray, samples: int | None = None
    ) -> dict[str, Any]:
        """Draws a batch.

        Args:
            step: of the run.
            phase: that the step belongs to.
            numbers: (B,) of the samples within the step.
            samples: of the whole step; nothing that is drawn depends on it.

        Returns:
            image and target (B, 3, H, W) in [0, 1], strength (B,), offset_dpt (B, 1, H, W), seed (B,) of the noise,
            drop_strength (B,), pivot_rows (B,) within the batch, and text_to_image.
        """
        text = is_text_step(step, self.cfg.text_share(phase))
        groups = numbers // self.group if text else numbers
        rngs = [step_rng(self.cfg.seed, step, int(group)) for group in groups]
        rows = np.array([rng.integers(len(self.pool)) for rng in rngs])
        seeds = torch.tensor([int(rng.integers(2**62)) for rng in rngs])
        frames = torch.tensor([int(rng.integers(self.group - 1)) for rng in rngs])
        grounded = torch.tensor([rng.random() < self.cfg.grounded_share for rng in rngs])
        itself = torch.arange(len(rows))
        if text:
            frames = torch.from_numpy(numbers % self.group) - 1  # -1 is the sharp photo
        batch = self.pool.batch(rows, phase.size_px, rngs, self.cfg.augment, frames.clamp(min=0)[:, None])
        sharp = frames < 0
        return {
            "text_to_image": text,
            "image": batch["image"],
            "target": torch.where(sharp[:, None, None, None], batch["image"], batch["bokeh"][:, 0]),
            "strength": torch.where(sharp, 0.0, batch["strength"][:, 0]),
            "offset_dpt": batch["offset_dpt"],
            "seed": seeds,
            "drop_strength": strength_drops(self.cfg, step, numbers, text),
            "pivot_rows": torch.where(grounded, itself - frames - 1, itself) if text else itself,
        }

    def looks(self, count: int, size_px: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The first photos (B, 3, H, W) and their offsets (B, 1, H, W) in dioptres, in the main memory."""
        batch = self.pool.batch(np.arange(min(count, len(self.pool))), size_px)
        return batch["image"].cpu(), batch["offset_dpt"].cpu()


def strength_drops(cfg: Stage1Config, step: int, numbers: np.ndarray, text: bool) -> torch.Tensor:
    """Which samples (B,) get no K: a share of those of text-to-image steps."""
    share = cfg.prompts.strength_dropout if text else 0.0
    return torch.tensor([step_rng(cfg.seed, step, int(n), 1).random() < share for n in numbers])


def lone_samples(cfg: Stage2Config, step: int, numbers: np.ndarray) -> torch.Tensor:
    """Which samples (B,) of a step get no stack."""
    return torch.tensor([step_rng(cfg.seed, step, int(number), 1).random() < cfg.lone_share for number in numbers])


class PoolStacks:
    """Stage-2 batches from a pool: photo, stack, K and depth; the same rows whatever the kind of stack.

    Args:
        cfg: of the run.
    """

    def __init__(self, cfg: Stage2Config) -> None:
        if cfg.stack == "renderer":
            _check_renders(cfg.pool, "the stack renderer")
        self.cfg, self.pool, self.without_intrinsics = cfg, ScenePool(cfg.pool, "train"), "a pool"
        self._check_depth()

    def _check_depth(self) -> None:
        """Counts the scenes without any depth that counts; they have no weight in the loss."""
        low, high, loaded = self.cfg.min_depth_m, self.cfg.max_depth_m, len(self.pool)
        blocks = self.pool.tensors["depth_m"].split(1000)
        empty = loaded - sum(int(((d >= low) & (d <= high)).flatten(1).any(1).sum()) for d in blocks)
        if empty:
            words = f"pool.folder is {self.cfg.pool.folder!r}, {empty} of whose {loaded} scenes have no depth"
            if empty == loaded:
                raise InputError(f"{words} from {low:g} to {high:g} m; wanted some to learn from.")
            logger.warning("%s from %g to %g m and count nothing.", words, low, high)

    def __call__(
        self, step: int, phase: PhaseConfig, numbers: np.ndarray, samples: int | None = None
    ) -> dict[str, Any]:
        """Draws a batch.

        Args:
            step: of the run.
            phase: its only one.
            numbers: (B,) of the samples within the step.
            samples: of the whole step; None where the numbers are all of them.

        Returns:
            image (B, 3, H, W) and bokeh (B, F, 3, H, W) in [0, 1], strength (B, F), depth_m (B, 1, H, W) and valid
            (B, 1, H, W), and lone (B,), who gets no stack.
        """
        rngs = [step_rng(self.cfg.seed, step, int(n)) for n in numbers]
        rows = np.array([rng.integers(len(self.pool)) for rng in rngs])
        count = self.pool.tensors["bokeh"].shape[1]
        frames = torch.stack([chosen_frames(count, rng, self.cfg.augment) for rng in rngs])
        batch = self.pool.batch(rows, phase.size_px, rngs, self.cfg.augment, frames)
        told = [told_strength(k, rng, self.cfg.augment) for k, rng in zip(batch["strength"], rngs, strict=True)]
        batch["strength"] = torch.stack(told)
        depth, names = batch["depth_m"], ("image", "bokeh", "strength", "depth_m")
        valid = (depth >= self.cfg.min_depth_m) & (depth <= self.cfg.max_depth_m)
        return {name: batch[name] for name in names} | {"valid": valid, "lone": lone_samples(self.cfg, step, numbers)}

    def looks(self, count: int) -> dict[str, torch.Tensor]:
        """The first scenes as a batch without augmentation, for sample grids."""
        return self.pool.batch(np.arange(min(count, len(self.pool))), self.cfg.size_px)


def chosen_frames(count: int, rng: np.random.Generator, augment: AugmentConfig) -> torch.Tensor:
    """Numbers (F,) of the frames that a sample keeps of `count`, in random order; all, ascending, unless told so."""
    if augment.frames is None:
        return torch.arange(count)
    if augment.frames > count:
        raise InputError(f"augment.frames is {augment.frames}; wanted at most the stack's {count} frames.")
    return torch.from_numpy(rng.permutation(count)[: augment.frames])


def told_strength(strength: torch.Tensor, rng: np.random.Generator, augment: AugmentConfig) -> torch.Tensor:
    """K (F,) with jitter, which ends at the trained range, since a lens beyond it is refused at inference too."""
    if not augment.strength_jitter:
        return strength
    factor = np.exp(augment.strength_jitter * rng.normal(size=len(strength))).astype(np.float32)
    return (strength * torch.from_numpy(factor)).clamp(max=MAX_BOKEH_STRENGTH)


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
