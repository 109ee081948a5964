"""What `BokehDepthPipeline` checks before any of its models runs, and the K that it is asked for.

A Hub repository carries the file joined in front of `pipeline_bokehdepth.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from .processing_bokehdepth import (
    MIN_SIDE_PX,
    Frames,
    PhotoInput,
    list_intrinsics,
    list_photos,
    list_stacks,
    list_strengths,
    photo_size,
)
from .sampling_bokehdepth import photo_of


class InputChecks:
    """The checking half of `BokehDepthPipeline`."""

    def max_bokeh_strength(self, parts: Sequence[str] = ("bokeh_adapter", "depth_estimator")) -> float:
        """The largest K that the loaded ones of these parts were trained for."""
        names = {"bokeh_adapter": "max_bokeh_strength", "depth_estimator": "bokeh_strength_max"}
        loaded = [(getattr(self, part), names[part]) for part in parts]
        return min((float(getattr(part.config, name)) for part, name in loaded if part is not None), default=math.inf)

    def check_bokeh_strengths(
        self,
        bokeh_strengths: Sequence[float] | float | None = None,
        parts: Sequence[str] = ("bokeh_adapter", "depth_estimator"),
    ) -> tuple[float, ...]:
        """K of a call as floats.

        Args:
            bokeh_strengths: one K or several; None is a third, two thirds and all of the trained range.
            parts: whose limits hold, as far as they are loaded.

        Raises:
            ValueError: K are not finite, ascending and within the trained range.

        Example:
            >>> pipe.check_bokeh_strengths(20)
            (20.0,)
        """
        limit = self.max_bokeh_strength(parts)
        if bokeh_strengths is None and math.isfinite(limit):
            return tuple(limit * share / 3 for share in (1, 2, 3))
        values = list_strengths(bokeh_strengths)
        if not values or not all(math.isfinite(k) and 0 <= k <= limit for k in values):
            raise ValueError(f"bokeh_strengths is {list(values)}; wanted one or more values from 0 to {limit:g}.")
        if any(a >= b for a, b in zip(values, values[1:], strict=False)):
            raise ValueError(f"bokeh_strengths is {list(values)}; wanted ascending values, each once.")
        return values

    def check_inputs(
        self,
        image: PhotoInput | Sequence[PhotoInput],
        bokeh_strengths: Sequence[float] | float | None = None,
        stack: Frames | Sequence[Frames] | None = None,
        num_inference_steps: int | None = None,
        sigmas: Sequence[float] | None = None,
        max_area: int | None = None,
        latents: torch.Tensor | None = None,
        processing_resolution: int | None = None,
        intrinsics: Any = None,
        output_type: str = "pil",
        joint_attention_kwargs: dict[str, Any] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        needs: Sequence[str] = (),
    ) -> None:
        """Checks every argument before a model runs.

        Raises:
            ValueError: with one sentence that names the argument, its value and what was wanted.
        """
        for name in needs:
            if getattr(self, name) is None:
                hint = " (call load_base_model() first)" if name in self._base_components else ""
                raise ValueError(f"{name} is None; wanted a loaded component{hint}.")
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"output_type is {output_type!r}; wanted 'pil', 'np' or 'pt'.")
        counts = (
            ("num_inference_steps", num_inference_steps, 1),
            ("max_area", max_area, MIN_SIDE_PX**2),
            ("processing_resolution", processing_resolution, MIN_SIDE_PX),
        )
        for name, value, least in counts:
            if value is not None and (isinstance(value, bool) or int(value) != value or value < least):
                raise ValueError(f"{name} is {value}; wanted a whole number from {least}.")
        if sigmas is not None and (num_inference_steps is not None or len(sigmas) == 0):
            raise ValueError(f"`sigmas` must be one or more, without num_inference_steps, got {list(sigmas)}.")
        unknown = sorted(set(joint_attention_kwargs or {}) - {"scale"})
        if unknown:
            raise ValueError(f"`joint_attention_kwargs` must hold the LoRAs' `scale` alone, got {unknown[0]!r}.")
        unknown = sorted(set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs))
        if unknown:
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` must be of {self._callback_tensor_inputs}, got {unknown[0]!r}."
            )
        parts = [part for part in ("bokeh_adapter", "depth_estimator") if part in needs or not needs]
        strengths = () if bokeh_strengths is None else self.check_bokeh_strengths(bokeh_strengths, parts)
        photos, is_list = list_photos(image)
        sizes = [photo_size(photo_of(photo), "image") for photo in photos]
        if latents is not None:
            grids = {self._sizes(*size, max_area)[1:] for size in sizes}
            multiple, width = 2 * self.vae_scale_factor, self.transformer.config.in_channels
            wanted = [(len(photos), w * padded // multiple**2, width) for w, padded in grids]
            if len(wanted) > 1 or tuple(latents.shape) not in (wanted[0], (1, *wanted[0][1:])):
                raise ValueError(
                    f"`latents` must be packed noise (B, N, C) = {' or '.join(map(str, wanted))} of photos of one "
                    f"size, got shape {tuple(latents.shape)}."
                )
        if stack is not None:
            stacks = list_stacks(stack, is_list, len(photos), len(strengths))
            for size, frames in zip(sizes, stacks, strict=True):
                for frame in frames:
                    got = photo_size(frame, "stack")
                    if got != size:
                        raise ValueError(
                            f"stack has a frame of {got[1]}x{got[0]} px; wanted the photo's {size[1]}x{size[0]} px."
                        )
        list_intrinsics(intrinsics, sizes, is_list)
        depth_model = self.depth_estimator if "depth_estimator" in needs else None
        if getattr(getattr(depth_model, "config", None), "depth_estimation_type", None) == "relative":
            raise ValueError("depth_estimator predicts relative disparity; wanted one that predicts metric depth.")
        if hasattr(depth_model, "infer") and processing_resolution is not None:
            raise ValueError(
                f"processing_resolution is {processing_resolution}; wanted None, since the depth model sizes photos."
            )
