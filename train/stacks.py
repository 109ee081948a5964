"""Replaces the rendered stacks of a scene pool by stacks that a Stage-1 model makes.

`python -m train.stacks --config train/configs/mini_stage1.yaml --model MODEL --output runs/pool_stage1`

The shards keep their names, photos, depth and K; a run that was cut off goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from pathlib import Path

import numpy as np
import torch

from bokehdepth.pipeline_bokehdepth import BokehDepthPipeline
from train import config
from train.config import Stage1Config
from train.data import shard_path
from train.evaluate_bokeh import load_stage1

logger = logging.getLogger("train.stacks")


def convert_shard(pipeline: BokehDepthPipeline, source: Path, target: Path, steps: int, size_px: int) -> None:
    """Writes one shard with generated frames, under a temporary name first.

    Args:
        pipeline: makes the stacks.
        source: shard with rendered frames.
        target: shard to write.
        steps: denoising steps.
        size_px: side of the pictures at work.
    """
    with np.load(source, allow_pickle=False) as shard:
        rows = dict(shard)
    for number, (photo, strengths) in enumerate(zip(rows["image"], rows["strength"], strict=True)):
        frames = pipeline.generate_stack(
            photo,
            [float(k) for k in strengths],
            num_inference_steps=steps,
            generator=torch.Generator().manual_seed(number),
            processing_area_px=size_px**2,
            output_type="np",
        ).images
        rows["bokeh"][number] = np.round(frames * 255).astype(np.uint8)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{os.getpid()}_{target.name}")
    np.savez(temporary, **rows)
    temporary.rename(target)


def main() -> None:
    """Generates stacks for a pool's scenes, the held-out ones first."""
    parser = config.parser(main.__doc__)
    parser.add_argument("--model", default="embedded", help="as in bokehdepth.hub, or the folder of a Stage-1 run")
    parser.add_argument("--output", required=True, help="folder of the new shards")
    parser.add_argument("--shards", type=int, default=10**6, help="at most so many shards of the training split")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--size", type=int, help="side of the pictures at work; the pool's own where not given")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    cfg = config.load(Stage1Config, arguments.config, arguments.set)
    torch.set_num_threads(cfg.threads)
    pipeline = load_stage1(arguments.model)
    pipeline.set_progress_bar_config(disable=True)
    new = dataclasses.replace(cfg.pool, folder=arguments.output)
    for split, limit in (("held_out", 10**6), ("train", arguments.shards)):
        index = 0
        while index < limit and (source := shard_path(cfg.pool, split, index)).exists():
            target = shard_path(new, split, index)
            if not target.exists():
                size = arguments.size or cfg.pool.size_px
                convert_shard(pipeline, source, target, arguments.steps, size)
                logger.info("%s", target.name)
            index += 1


if __name__ == "__main__":
    main()
