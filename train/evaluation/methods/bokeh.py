"""Methods that make bokeh: our Stage-1, the plain base, the renderer, and what a method must beat."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as fn
from diffusers import FluxKontextPipeline
from PIL import Image

from bokehdepth.camera.lens import REFERENCE_WIDTH_PX, f_number_for_strength
from bokehdepth.errors import InputError
from bokehdepth.hub import load_pipeline
from bokehdepth.loading_bokehdepth import explain_hub_error
from bokehdepth.pipeline_bokehdepth import BokehDepthPipeline
from bokehdepth.processing_bokehdepth import resize, to_pixels, working_size
from bokehdepth.rendering.disk import disk_blur
from bokehdepth.rendering.refocus import render_from_depth
from train.evaluation.methods import BokehMethod, DepthMethod, MethodOptions, make_method, number_of
from train.evaluation.metrics_bokeh import GAMMA, psnr
from train.evaluation.samples import Sample, Source
from train.rows import fill_holes

OFFSETS_DPT = (0.02, 0.04, 0.06, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8)
"""Disparity offsets that `UniformBlur` tries."""
FITTED = 64
"""Samples, evenly spread, that its offset is chosen on."""
GRID_PX = 128
"""Side of the map of `PositionOnly`."""
KONTEXT = "black-forest-labs/FLUX.1-Kontext-dev"
PROMPT = (
    "Photograph this scene with a shallow depth of field at {aperture}: keep the main subject sharp, blur what is "
    "nearer and farther, and change nothing else."
)


class Identity(BokehMethod):
    """The photo itself at every K: what a bokeh method must beat."""

    def __init__(self, argument: str, options: MethodOptions) -> None:
        pass

    def frames(self, sample: Sample, bokeh_strengths: Sequence[float]) -> np.ndarray:
        """The photo, (F, H, W, 3)."""
        return np.repeat(sample.photo[None], len(bokeh_strengths), axis=0)


class UniformBlur(BokehMethod):
    """Blurs with `radius = K * (width / 512) * offset`, one offset for all: a method that knows blur but not place.

    The offset is the one of `OFFSETS_DPT` with the best mean PSNR on the evaluated pictures themselves: the row is the
    most that a uniform blur can do there.

    Args:
        argument: an offset in dioptres, or empty to choose the best.
        options: of no effect.
    """

    def __init__(self, argument: str, options: MethodOptions) -> None:
        self.offset_dpt = number_of(argument, "uniform_blur", "OFFSET")
        self.uses_truth = self.offset_dpt is None

    def prepare(self, source: Source) -> None:
        """Chooses the offset where none was given."""
        if self.offset_dpt is not None:
            return
        scores = []
        for number in np.unique(np.linspace(0, len(source) - 1, min(FITTED, len(source))).astype(int)):
            sample = source[int(number)]
            for target in sample.targets:
                blurred = (self._blur(sample.photo, target.bokeh_strength, offset) for offset in OFFSETS_DPT)
                scores.append([psnr(picture, target.picture) for picture in blurred])
        if not scores:
            raise InputError("`source` must have targets to choose the offset of uniform_blur on, got none.")
        self.offset_dpt = OFFSETS_DPT[int(np.mean(scores, axis=0).argmax())]

    @staticmethod
    def _blur(photo: np.ndarray, bokeh_strength: float, offset_dpt: float) -> np.ndarray:
        radius_px = bokeh_strength * photo.shape[1] / REFERENCE_WIDTH_PX * offset_dpt
        return np.clip(disk_blur(photo, radius_px, gamma=GAMMA), 0, 1)

    def frames(self, sample: Sample, bokeh_strengths: Sequence[float]) -> np.ndarray:
        """The blurred photo, (F, H, W, 3)."""
        return np.stack([self._blur(sample.photo, k, self.offset_dpt) for k in bokeh_strengths])


class PositionOnly(BokehMethod):
    """Blurs each pixel by the mean true offset of the evaluated photos there: a method that knows only position."""

    uses_truth = True

    def __init__(self, argument: str, options: MethodOptions) -> None:
        self.offset_dpt: torch.Tensor | None = None

    def prepare(self, source: Source) -> None:
        """Averages the offsets."""
        offsets = []
        for sample in source:
            offset = sample.offset_dpt()
            if offset is not None and np.isfinite(offset).any():
                array = torch.from_numpy(fill_holes(offset))[None, None]
                offsets.append(fn.interpolate(array, (GRID_PX, GRID_PX), mode="bilinear", antialias=True))
        if not offsets:
            raise InputError("`source` must have depth and focus distances to average in position_only, got none.")
        self.offset_dpt = torch.stack(offsets).mean(0)

    def frames(self, sample: Sample, bokeh_strengths: Sequence[float]) -> np.ndarray:
        """The blurred photo, (F, H, W, 3)."""
        size = sample.photo.shape[:2]
        offset = fn.interpolate(self.offset_dpt, size, mode="bilinear", antialias=True)[0, 0].numpy()
        focus_dpt = float(offset.max()) + 1  # any focus will do that leaves what is blurred behind it
        photo = np.ascontiguousarray(sample.photo, dtype=np.float32)
        depth_m = 1 / (focus_dpt - offset)
        return np.stack([render_from_depth(photo, depth_m, k, 1 / focus_dpt) for k in bokeh_strengths])


class Renderer(BokehMethod):
    """Renders the photo through the stated lens with another method's depth; the focus distance is the stated one.

    Args:
        argument: name of the depth method.
        options: passed on to it.

    Raises:
        InputError: there is no such depth method, what it needs is absent, or its depth has no metres.
    """

    def __init__(self, argument: str, options: MethodOptions) -> None:
        inner = make_method(argument, options)
        if not isinstance(inner, DepthMethod) or inner.key != "depth_metric":
            raise InputError(f"`method` must be render: and a method of metric depth, got render:{argument}.")
        self.inner, self.prepare = inner, inner.prepare
        self.weights, self.uses_truth, self.uses_intrinsics = inner.weights, inner.uses_truth, inner.uses_intrinsics

    def frames(self, sample: Sample, bokeh_strengths: Sequence[float]) -> np.ndarray:
        """Rendered pictures, (F, H, W, 3); InputError where the sample has no focus distance."""
        if sample.focus_distance_m is None:
            raise InputError(f"`focus_distance_m` must be known of sample {sample.sample_id!r}, got none.")
        depth_m = np.asarray(self.inner.depth(sample), dtype=np.float32)
        photo = np.ascontiguousarray(sample.photo, dtype=np.float32)
        return np.stack([render_from_depth(photo, depth_m, k, sample.focus_distance_m) for k in bokeh_strengths])


class _Generator(BokehMethod):
    """A method with noise: each sample has its own, whatever the order in which they are done."""

    def __init__(self, options: MethodOptions, weights: str) -> None:
        self.options, self.weights = options, weights
        self._numbers: dict[str, int] = {}

    def prepare(self, source: Source) -> None:
        """Numbers the samples."""
        self._numbers = {name: number for number, name in enumerate(source.ids)}

    def noise(self, sample: Sample) -> torch.Generator:
        """The noise of a sample, the same for all K."""
        return torch.Generator().manual_seed(self.options.seed + self._numbers[sample.sample_id])


class Stage1(_Generator):
    """Generates the frames with our Stage-1.

    Args:
        argument: must be empty; the model is `options.model`.
        options: model, device, steps, processing_area_px, restore and seed are used.

    Raises:
        InputError: the model cannot be found, is incomplete, or makes no stacks.
    """

    def __init__(self, argument: str, options: MethodOptions) -> None:
        super().__init__(options, options.model)
        self.pipeline: BokehDepthPipeline = load_pipeline(options.model, device=options.device)
        if self.pipeline.transformer is None or self.pipeline.bokeh_adapter is None:
            raise InputError(f"`model` must have a Stage-1, which makes stacks, got {options.model}.")
        self.pipeline.set_progress_bar_config(disable=True)

    def frames(self, sample: Sample, bokeh_strengths: Sequence[float]) -> np.ndarray:
        """Generated pictures, (F, H, W, 3)."""
        return self.pipeline.generate_stack(
            sample.photo,
            [float(k) for k in bokeh_strengths],
            num_inference_steps=self.options.steps,
            generator=self.noise(sample),
            max_area=self.options.processing_area_px,
            restore=self.options.restore,
            output_type="np",
        ).images


def prompt_for(bokeh_strength: float) -> str:
    """The prompt of one K, with the f-number that a 50 mm full-frame lens focused at 2 m would need for it."""
    aperture = f"{f_number_for_strength(bokeh_strength, 50.0, 2.0, 36.0):.1f}" if bokeh_strength > 0 else "22"
    return PROMPT.format(aperture=f"f/{aperture}")


class Kontext(_Generator):
    """Plain FLUX.1-Kontext by prompt, without our adapter: what the base does when it is told to blur.

    Args:
        argument: a folder or repository; empty takes `KONTEXT`.
        options: device, steps, processing_area_px and seed are used.

    Raises:
        InputError: the weights cannot be had.
    """

    def __init__(self, argument: str, options: MethodOptions) -> None:
        super().__init__(options, argument or KONTEXT)
        dtype = torch.float32 if options.device == "cpu" else torch.bfloat16
        try:
            self.pipeline = FluxKontextPipeline.from_pretrained(self.weights, dtype=dtype)
        except (OSError, ValueError) as error:
            reason = explain_hub_error(error, self.weights) or f"{type(error).__name__}: {error}"
            raise InputError(f"kontext needs weights that cannot be had: {reason}") from error
        self.pipeline.to(options.device).set_progress_bar_config(disable=True)

    def frames(self, sample: Sample, bokeh_strengths: Sequence[float]) -> np.ndarray:
        """Edited pictures at the photo's size, (F, H, W, 3)."""
        height, width = sample.photo.shape[:2]
        area = self.options.processing_area_px or 1024 * 1024
        _, working_width, padded = working_size(height, width, area, 2 * self.pipeline.vae_scale_factor)
        frames = []
        for strength in bokeh_strengths:
            edited = self.pipeline(
                image=Image.fromarray((sample.photo * 255).round().astype(np.uint8)),
                prompt=prompt_for(strength),
                height=padded,
                width=working_width,
                max_area=padded * working_width,
                _auto_resize=False,
                num_inference_steps=self.options.steps or 28,
                guidance_scale=2.5,
                generator=self.noise(sample),
                output_type="np",
            ).images[0]
            frames.append(resize(to_pixels(edited, "image"), height, width)[0].permute(1, 2, 0).numpy())
        return np.stack(frames)


METHODS = {
    "identity": Identity,
    "uniform_blur": UniformBlur,
    "position_only": PositionOnly,
    "render": Renderer,
    "stage1": Stage1,
    "kontext": Kontext,
}
"""Name to class, which takes the text behind the name's colon, "" where there is none, and options."""
