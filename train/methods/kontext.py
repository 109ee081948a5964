"""Plain FLUX.1-Kontext by prompt, without our adapter: what the base does when it is told to blur."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bokehdepth.errors import InputError
from train.methods import MethodOptions
from train.sources import Sample, Source

REPOSITORY = "black-forest-labs/FLUX.1-Kontext-dev"
PROMPT = (
    "Photograph this scene with a shallow depth of field at {aperture}: keep the main subject sharp, blur what is "
    "nearer and farther, and change nothing else."
)


def prompt_for(bokeh_strength: float) -> str:
    """The prompt of one K, with the f-number that a 50 mm full-frame lens focused at 2 m would need for it."""
    from bokehdepth.camera.lens import f_number_for_strength

    if bokeh_strength <= 0:
        return PROMPT.format(aperture="f/22")
    return PROMPT.format(aperture=f"f/{f_number_for_strength(bokeh_strength, 50.0, 2.0, 36.0):.1f}")


class Kontext:
    """Edits the photo with FLUX.1-Kontext.

    Args:
        argument: a folder or repository; empty takes `REPOSITORY`.
        options: device, steps, processing_area_px and seed are used.

    Raises:
        InputError: the weights cannot be had.
    """

    uses_truth, uses_intrinsics = False, False

    def __init__(self, argument: str, options: MethodOptions) -> None:
        import torch
        from diffusers import FluxKontextPipeline

        from bokehdepth.loading_bokehdepth import explain_hub_error

        self.options, self.weights = options, argument or REPOSITORY
        dtype = torch.float32 if options.device == "cpu" else torch.bfloat16
        try:
            self.pipeline = FluxKontextPipeline.from_pretrained(self.weights, dtype=dtype)
        except (OSError, ValueError) as error:
            reason = explain_hub_error(error, self.weights) or f"{type(error).__name__}: {error}"
            raise InputError(f"kontext needs weights that cannot be had: {reason}") from error
        self.pipeline.to(options.device).set_progress_bar_config(disable=True)

    def prepare(self, source: Source) -> None:
        """Numbers the samples, as Stage-1 does."""
        self._numbers = {name: number for number, name in enumerate(source.ids)}

    def frames(self, sample: Sample, bokeh_strengths: Sequence[float]) -> np.ndarray:
        """Edited pictures at the photo's size, (F, H, W, 3)."""
        import torch
        from PIL import Image

        from bokehdepth.processing_bokehdepth import resize, to_pixels, working_size

        height, width = sample.photo.shape[:2]
        area = self.options.processing_area_px or 1024 * 1024
        multiple = 2 * self.pipeline.vae_scale_factor
        _, w, padded = working_size(height, width, area, multiple)
        image = Image.fromarray((sample.photo * 255).round().astype(np.uint8))
        frames = []
        for strength in bokeh_strengths:
            seed = self.options.seed + self._numbers[sample.sample_id]
            edited = self.pipeline(
                image=image,
                prompt=prompt_for(strength),
                height=padded,
                width=w,
                max_area=padded * w,
                _auto_resize=False,
                num_inference_steps=self.options.steps or 28,
                guidance_scale=2.5,
                generator=torch.Generator().manual_seed(seed),
                output_type="np",
            ).images[0]
            frames.append(resize(to_pixels(edited, "image"), height, width)[0].permute(1, 2, 0).numpy())
        return np.stack(frames)
