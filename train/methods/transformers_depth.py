"""Any depth model of the library transformers by its repository: Depth Anything, Depth Pro, ZoeDepth, DPT, GLPN."""

from __future__ import annotations

import numpy as np

from bokehdepth.errors import InputError
from train.methods import MethodOptions
from train.sources import Sample, Source

KEYS = {"depth_pro": "depth_metric", "zoedepth": "depth_metric", "glpn": "depth_metric",
        "dpt": "disparity_affine_invariant"}  # fmt: skip
"""What models of one kind give. Depth Anything says it in its configuration."""


class TransformersDepth:
    """Runs a model with its own processor, the way its page says.

    Args:
        argument: a repository or a folder.
        options: device is used.

    Raises:
        InputError: the weights or a package that the processor needs cannot be had, or what the model gives is not
            known here.
    """

    uses_truth, uses_intrinsics = False, False

    def __init__(self, argument: str, options: MethodOptions) -> None:
        if not argument:
            raise InputError("method is transformers, wanted transformers:REPOSITORY.")
        import torch
        from transformers import AutoImageProcessor, AutoModelForDepthEstimation

        from bokehdepth.loading_bokehdepth import explain_hub_error

        self.weights, self.device = argument, options.device
        try:
            self.model = AutoModelForDepthEstimation.from_pretrained(argument, dtype=torch.float32)
            self.processor = AutoImageProcessor.from_pretrained(argument)
        except (OSError, ValueError, ImportError) as error:
            reason = explain_hub_error(error, argument) or f"{type(error).__name__}: {error}"
            first = next((line.strip() for line in reason.splitlines() if line.strip()), reason)
            raise InputError(f"{argument} cannot be had: {first}") from error
        settings = self.model.config
        if settings.model_type == "depth_anything":
            relative = settings.depth_estimation_type == "relative"
            self.key = "disparity_affine_invariant" if relative else "depth_metric"
        elif settings.model_type in KEYS:
            self.key = KEYS[settings.model_type]
        else:
            raise InputError(
                f"{argument} is a model of the kind {settings.model_type!r}, wanted depth_anything or one of "
                f"{sorted(KEYS)}, of which it is known what they give."
            )
        self.model = self.model.to(options.device).eval()

    def prepare(self, source: Source) -> None:
        """Nothing to do."""

    def depth(self, sample: Sample) -> np.ndarray:
        """What the model gives, by its `key`, at the photo's size, float32 (H, W)."""
        import torch

        picture = (sample.photo * 255).round().astype(np.uint8)
        size = picture.shape[:2]
        inputs = self.processor(images=picture, return_tensors="pt").to(self.device)
        sizes = {"target_sizes": [size]}
        if self.model.config.model_type == "zoedepth":
            sizes["source_sizes"] = [size]
        with torch.inference_mode():
            outputs = self.model(**inputs)
        found = self.processor.post_process_depth_estimation(outputs, **sizes)[0]["predicted_depth"]
        return found.float().cpu().numpy()
