"""Our Stage-2: with a stack of Stage-1, with the row's own, with one rendered from the truth, and its controls."""

from __future__ import annotations

import inspect
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bokehdepth.errors import InputError
from bokehdepth.hub import load_pipeline
from bokehdepth.rendering.refocus import render_from_depth
from train.methods import MethodOptions
from train.methods.stage1 import Stage1
from train.methods.truth import Truth
from train.sources import Sample, Source

if TYPE_CHECKING:
    from bokehdepth.pipeline_bokehdepth import BokehDepthPipeline

STACKS = ("generated", "none", "sharp", "given", "rendered")


def load_stage2(model: str, device: str = "cpu") -> BokehDepthPipeline:
    """A pipeline that can estimate depth.

    Args:
        model: as in `bokehdepth.hub`, or the folder of a depth model alone, which `train.stage2` writes; it works at
            the size of its `preprocessor_config.json`.
        device: where it runs.

    Raises:
        InputError: the model cannot be found, is incomplete, or estimates no depth.
    """
    folder = Path(model)
    if (folder / "config.json").is_file() and not (folder / "model_index.json").is_file():
        import torch
        from transformers import AutoModelForDepthEstimation

        import bokehdepth.modeling_bokehdepth_efficientnet  # noqa: F401 - registers its classes with transformers
        import bokehdepth.modeling_bokehdepth_unidepth  # noqa: F401 - likewise
        from bokehdepth.pipeline_bokehdepth import BokehDepthPipeline

        try:
            settings = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
            side_px = min(settings["size"].values())
            estimator = AutoModelForDepthEstimation.from_pretrained(folder, dtype=torch.float32).eval()
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"model is {model}, which is no whole depth model ({error}).") from error
        others = ("scheduler", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "transformer")
        estimator.config.processing_resolution = side_px
        pipeline = BokehDepthPipeline(**dict.fromkeys(others), bokeh_adapter=None, depth_estimator=estimator).to(
            device
        )
    else:
        pipeline = load_pipeline(model, device=device, with_base=False)
    if pipeline.depth_estimator is None:
        raise InputError(f"model is {model}, which has no Stage-2, wanted one that estimates depth.")
    return pipeline


def middle_focus_m(depth_m: np.ndarray) -> float:
    """Depth of what is in the middle, where a camera focuses: 1 / the median disparity of the middle ninth, metres.

    Args:
        depth_m: float (H, W) without holes.
    """
    height, width = depth_m.shape
    return float(1 / np.median(1 / depth_m[height // 3 : -(height // 3), width // 3 : -(width // 3)]))


class Stage2:
    """Estimates metric depth with our Stage-2.

    Args:
        argument: generated (or empty: Stage-1 makes the stack at `options.bokeh_strengths`), none
            (the photo alone), sharp (the photo in place of every frame), given (the frames that came with the row) or
            rendered (frames at `options.bokeh_strengths` from the true depth, its holes filled, focused on the row's
            distance or else on the middle of the photo).
        options: model, device, steps, bokeh_strengths, processing_px, intrinsics and Stage-1's are used.

    Raises:
        InputError: the argument is another, or the model lacks a stage that is needed.
    """

    key = "depth_metric"

    def __init__(self, argument: str, options: MethodOptions) -> None:
        self.stack = argument or "generated"
        if self.stack not in STACKS:
            raise InputError(f"method is stage2:{argument}, wanted one of {STACKS} behind stage2.")
        self.options, self.weights = options, options.model
        self.uses_truth = self.stack in ("given", "rendered")
        self.truth = Truth("", options)
        self.stage1: Stage1 | None = None
        if self.stack == "generated":
            maker = options.stack_model or options.model
            self.stage1 = Stage1("", replace(options, model=maker))
            self.weights = options.model if maker == options.model else f"{options.model}, stack {maker}"
        if self.stage1 is not None and options.stack_model is None:
            self.pipeline = self.stage1.pipeline
            if self.pipeline.depth_estimator is None:
                raise InputError(f"model is {options.model}, which has no Stage-2, wanted one that estimates depth.")
        else:
            self.pipeline = load_stage2(options.model, options.device)
        takes_camera = "intrinsics" in inspect.signature(self.pipeline.depth_estimator.forward).parameters
        self.uses_intrinsics = takes_camera and options.intrinsics == "given"

    def prepare(self, source: Source) -> None:
        """Prepares Stage-1 where it is used."""
        if self.stage1 is not None:
            self.stage1.prepare(source)

    def depth(self, sample: Sample) -> np.ndarray:
        """Metres, float32 (H, W); InputError where the row's own stack or its depth is wanted and there is none."""
        strengths: tuple[float, ...] | None = self.options.bokeh_strengths
        if self.stack == "none":
            stack = strengths = None
        elif self.stack == "sharp":
            stack = [sample.photo] * len(strengths)
        elif self.stack == "given":
            if not sample.stack:
                raise InputError(f"sample {sample.sample_id!r} has no stack, wanted one in its row.")
            stack, strengths = [f.picture for f in sample.stack], tuple(f.bokeh_strength for f in sample.stack)
        elif self.stack == "rendered":
            depth_m = self.truth.depth(sample)
            focus_m = sample.focus_distance_m or middle_focus_m(depth_m)
            photo = np.ascontiguousarray(sample.photo, dtype=np.float32)
            stack = [render_from_depth(photo, depth_m, k, focus_m) for k in strengths]
        else:
            stack = list(self.stage1.frames(sample, strengths))
        return self.pipeline.estimate_depth(
            sample.photo,
            stack=stack,
            bokeh_strengths=strengths,
            intrinsics=sample.intrinsics if self.uses_intrinsics else None,
            processing_resolution=self.options.processing_px,
        ).depth_m
