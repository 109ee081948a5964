"""Puts trained parts together as the embedded model: `python -m train.export_mini --stage1 DIR --stage2 DIR`."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from bokehdepth.hub import EMBEDDED_FOLDER
from bokehdepth.modeling_bokeh_adapter import BokehAdapter
from bokehdepth.modeling_bokehdepth_efficientnet import BokehDepthEfficientNetForDepthEstimation
from bokehdepth.modeling_mini_flux import MiniFluxTransformer2DModel, PatchAutoencoder
from bokehdepth.pipeline_bokehdepth import BokehDepthPipeline

SHARD = "14MB"


def export(
    stage1: Path,
    stage2: Path,
    output: Path,
    *,
    area_px: int = 192 * 256,
    depth_area_px: int | None = None,
    steps: int = 1,
    quantile: float | None = None,
) -> None:
    """Writes the embedded model's folder in bfloat16, in shards below 15 MB.

    Args:
        stage1: the folder `model` of a Stage-1 run.
        stage2: the folder `model` of a Stage-2 run.
        output: the folder; weights of an earlier export there are removed.
        area_px: pixels at work in Stage-1.
        depth_area_px: pixels at work in Stage-2; None as it was trained.
        steps: default number of inference steps.
        quantile: of the levels, which each pixel takes; None as it was trained.
    """
    decision = {} if quantile is None else {"quantile": quantile}
    area = {} if depth_area_px is None else {"area_px": depth_area_px}
    pipeline = BokehDepthPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(stage1 / "scheduler"),
        vae=PatchAutoencoder.from_pretrained(stage1 / "vae"),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=MiniFluxTransformer2DModel.from_pretrained(stage1 / "transformer", **decision),
        bokeh_adapter=BokehAdapter.from_pretrained(
            stage1 / "bokeh_adapter", num_inference_steps=steps, max_area=area_px
        ),
        depth_estimator=BokehDepthEfficientNetForDepthEstimation.from_pretrained(stage2, **area),
    )
    # Weights of an earlier export in another number of shards would be loaded in place of the new ones.
    for stale in output.glob("*/*.safetensors*"):
        stale.unlink()
    pipeline.to(dtype=torch.bfloat16).save_pretrained(output, max_shard_size=SHARD)
    # The package holds the code once; a published folder gets its own copy.
    for copy in [*output.glob("*.py"), *output.glob("*/*.py")]:
        if copy.name != "__init__.py":
            copy.unlink()
    shutil.rmtree(output / "__pycache__", ignore_errors=True)


def main() -> None:
    """Puts trained parts together as the embedded model."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--stage1", type=Path, required=True, help="the folder `model` of a Stage-1 run")
    parser.add_argument("--stage2", type=Path, required=True, help="the folder `model` of a Stage-2 run")
    parser.add_argument("--output", type=Path, default=EMBEDDED_FOLDER)
    parser.add_argument("--steps", type=int, default=1, help="default number of inference steps")
    parser.add_argument("--area", type=int, default=192 * 256, help="pixels at work in Stage-1")
    parser.add_argument("--quantile", type=float, help="of the levels, which each pixel takes; default: as trained")
    parser.add_argument("--depth-area", type=int, help="pixels at work in Stage-2; default: as trained")
    given = parser.parse_args()
    sizes = {"area_px": given.area, "depth_area_px": given.depth_area}
    export(given.stage1, given.stage2, given.output, **sizes, steps=given.steps, quantile=given.quantile)


if __name__ == "__main__":
    main()
