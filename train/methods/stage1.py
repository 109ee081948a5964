"""Our Stage-1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from bokehdepth.errors import InputError
from bokehdepth.hub import load_pipeline
from train.methods import MethodOptions, refuse_argument
from train.sources import Sample, Source

if TYPE_CHECKING:
    from bokehdepth.pipeline_bokehdepth import BokehDepthPipeline


def load_stage1(model: str, device: str = "cpu") -> BokehDepthPipeline:
    """A pipeline that can make stacks.

    Args:
        model: as in `bokehdepth.hub`, for instance the folder that `train.stage1` writes.
        device: where it runs.

    Raises:
        InputError: the model cannot be found, is incomplete, or makes no stacks.
    """
    pipeline = load_pipeline(model, device=device)
    if pipeline.transformer is None or pipeline.bokeh_adapter is None:
        raise InputError(f"model is {model}, which has no Stage-1, wanted one that makes stacks.")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


class Stage1:
    """Generates the frames with our Stage-1.

    Args:
        argument: must be empty; the model is `options.model`.
        options: model, device, steps, processing_area_px, restore and seed are used.
    """

    uses_truth, uses_intrinsics = False, False

    def __init__(self, argument: str, options: MethodOptions) -> None:
        refuse_argument(argument, "stage1")
        self.options, self.weights = options, options.model
        self.pipeline = load_stage1(options.model, options.device)
        self._numbers: dict[str, int] = {}

    def prepare(self, source: Source) -> None:
        """Numbers the samples: each has its own noise, whatever the order in which they are done."""
        self._numbers = {name: number for number, name in enumerate(source.ids)}

    def frames(self, sample: Sample, bokeh_strengths: Sequence[float]) -> np.ndarray:
        """Generated pictures, (F, H, W, 3)."""
        import torch

        seed = self.options.seed + self._numbers[sample.sample_id]
        return self.pipeline.generate_stack(
            sample.photo,
            [float(k) for k in bokeh_strengths],
            num_inference_steps=self.options.steps,
            generator=torch.Generator().manual_seed(seed),
            max_area=self.options.processing_area_px,
            restore=self.options.restore,
            output_type="np",
        ).images
