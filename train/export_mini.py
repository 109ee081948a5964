"""Puts trained parts together as the embedded model: `python -m train.export_mini --stage1 DIR --stage2 DIR`."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from bokehdepth.hub import EMBEDDED_FOLDER
from bokehdepth.modeling_bokeh_adapter import BokehAdapter
from bokehdepth.modeling_bokehdepth import BokehDepthAnythingForDepthEstimation
from bokehdepth.modeling_mini_flux import MiniFluxTransformer2DModel, PatchAutoencoder
from bokehdepth.pipeline_bokehdepth import BokehDepthPipeline

SHARD = "14MB"


def main() -> None:
    """Writes the embedded model's folder in bfloat16, in shards below 15 MB."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--stage1", type=Path, required=True, help="the folder `model` of a Stage-1 run")
    parser.add_argument("--stage2", type=Path, required=True, help="the folder `model` of a Stage-2 run")
    parser.add_argument("--output", type=Path, default=EMBEDDED_FOLDER)
    parser.add_argument("--steps", type=int, default=1, help="default number of inference steps")
    parser.add_argument("--area", type=int, default=192 * 192, help="pixels at work in Stage-1")
    parser.add_argument("--mirrored", action="store_true", help="Stage-1 looks at the mirror image too")
    parser.add_argument("--quantile", type=float, default=0.5, help="of the levels, which each pixel takes")
    parser.add_argument("--side", type=int, default=140, help="shorter side at work in Stage-2")
    arguments = parser.parse_args()
    decision = {"mirrored": arguments.mirrored, "quantile": arguments.quantile}
    pipeline = BokehDepthPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(arguments.stage1 / "scheduler"),
        vae=PatchAutoencoder.from_pretrained(arguments.stage1 / "vae"),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=MiniFluxTransformer2DModel.from_pretrained(arguments.stage1 / "transformer", **decision),
        bokeh_adapter=BokehAdapter.from_pretrained(arguments.stage1 / "bokeh_adapter"),
        depth_estimator=BokehDepthAnythingForDepthEstimation.from_pretrained(arguments.stage2),
        default_num_inference_steps=arguments.steps,
        default_processing_area_px=arguments.area,
        depth_processing_px=arguments.side,
    )
    # Weights of an earlier export in another number of shards would be loaded in place of the new ones.
    for stale in arguments.output.glob("*/*.safetensors*"):
        stale.unlink()
    pipeline.to(dtype=torch.bfloat16).save_pretrained(arguments.output, max_shard_size=SHARD)
    # The package holds the code once; a published folder gets its own copy.
    for copy in [*arguments.output.glob("*.py"), *arguments.output.glob("*/*.py")]:
        if copy.name != "__init__.py":
            copy.unlink()
    shutil.rmtree(arguments.output / "__pycache__", ignore_errors=True)


if __name__ == "__main__":
    main()
