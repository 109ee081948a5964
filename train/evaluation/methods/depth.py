"""Methods that give depth: our Stage-2, the models of transformers, and guesses that a model must beat."""

from __future__ import annotations

import inspect
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import minimize
from transformers import AutoImageProcessor, AutoModelForDepthEstimation

import bokehdepth.modeling_bokehdepth_efficientnet  # registers its classes with transformers
import bokehdepth.modeling_bokehdepth_unidepth  # noqa: F401 - likewise
from bokehdepth.errors import InputError
from bokehdepth.hub import load_pipeline
from bokehdepth.loading_bokehdepth import explain_hub_error
from bokehdepth.pipeline_bokehdepth import BokehDepthPipeline
from bokehdepth.rendering.refocus import render_from_depth
from train.evaluation.methods import DepthMethod, MethodOptions, number_of
from train.evaluation.methods.bokeh import Stage1
from train.evaluation.samples import Sample, Source
from train.rows import fill_holes

# ---------------------------------------------------------------------- guesses and the truth

BANDS, STEPS = 64, 4000
NEAREST_M, FARTHEST_M = 0.01, 1000.0
MAX_DEPTH_M = 200.0
"""The farthest that a line over the height says."""


class Truth(DepthMethod):
    """Returns the true depth, the perfect row of a table; a hole takes the depth of the nearest pixel that has one."""

    uses_truth = True

    def __init__(self, argument: str, options: MethodOptions) -> None:
        pass

    def depth(self, sample: Sample) -> np.ndarray:
        """Metres at the photo's size, float32 (H, W); InputError where the sample has no depth."""
        depth_m = sample.depth_of_photo_m()
        if depth_m is None or not np.isfinite(depth_m).any():
            raise InputError(f"`depth` must be known of sample {sample.sample_id!r}, got none.")
        return fill_holes(depth_m)


def truth_table(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """How much of the mean over pictures each depth has at each height: all that counts for a guess without a look.

    Args:
        source: samples with true depth.

    Returns:
        float64 `(BANDS, STEPS)`, share of the pictures' pixels, each picture counting the same, bands from the top;
        and the depths of its columns, metres `(STEPS,)`.

    Raises:
        InputError: no sample has a depth.
    """
    first, last = np.log(NEAREST_M), np.log(FARTHEST_M)
    table = np.zeros(BANDS * STEPS)
    for sample in samples_with_depth(source):
        rows, columns = np.nonzero(np.isfinite(sample.depth_m))
        share = (np.log(sample.depth_m[rows, columns]) - first) / (last - first)
        step = np.clip((share * STEPS).astype(int), 0, STEPS - 1)
        band = rows * BANDS // len(sample.depth_m)
        table += np.bincount(band * STEPS + step, minlength=len(table)) / len(rows)
    middles = np.exp(first + (np.arange(STEPS) + 0.5) / STEPS * (last - first))
    return table.reshape(BANDS, STEPS) / table.sum(), middles


def samples_with_depth(source: Source) -> list[Sample]:
    """Those whose depth has a value; InputError where there is none."""
    known = [s for s in source if s.depth_m is not None and np.isfinite(s.depth_m).any()]
    if not known:
        raise InputError("`source` must have true depth to fit a guess to, got none.")
    return known


def best_constant(source: Source) -> float:
    """Depth in metres with the smallest mean AbsRel: the median of all depths, each weighted by its inverse."""
    table, depth_m = truth_table(source)
    weight = np.cumsum(table.sum(axis=0) / depth_m)
    return float(depth_m[np.searchsorted(weight, weight[-1] / 2)])


def best_line(source: Source, least_dpt: float) -> tuple[float, float]:
    """Disparity at the upper and the lower edge whose line over the height has the smallest mean AbsRel.

    Args:
        source: samples with true depth.
        least_dpt: the line is cut off below it.

    Returns:
        1/m at the top and at the bottom.
    """
    table, depth_m = truth_table(source)
    band = np.arange(BANDS)
    height = (band + 0.5) / BANDS
    below, far = np.cumsum(table / depth_m, axis=1), np.cumsum(table, axis=1)

    def error(ends: np.ndarray) -> float:
        guess = 1 / np.maximum(ends[0] + (ends[1] - ends[0]) * height, least_dpt)
        # sum of share * |guess / depth - 1| over the depths before the guess, and over those behind it
        step = np.clip(np.searchsorted(depth_m, guess) - 1, 0, None)
        near = guess * below[band, step] - far[band, step]
        return float((2 * near - guess * below[:, -1] + far[:, -1]).sum())

    middle = 1 / best_constant(source)
    starts = [(middle, middle), (0.5 * middle, 1.5 * middle), (0.2 * middle, 3 * middle)]
    fits = [minimize(error, start, method="Nelder-Mead", options={"xatol": 1e-5, "fatol": 1e-7}) for start in starts]
    return tuple(float(end) for end in min(fits, key=lambda fit: fit.fun).x)


class Constant(DepthMethod):
    """Returns one depth: a stated one, or one chosen by the evaluated photos' own true depths.

    Args:
        argument: metres; empty for the median of the photos' medians; best for the constant of the smallest AbsRel.
        options: of no effect.
    """

    def __init__(self, argument: str, options: MethodOptions) -> None:
        self.is_best = argument == "best"
        self.depth_m = None if self.is_best else number_of(argument, "constant", "METRES", 1e-3)
        self.uses_truth = self.depth_m is None

    def prepare(self, source: Source) -> None:
        """Chooses the depth where none was given."""
        if self.is_best:
            self.depth_m = best_constant(source)
        elif self.depth_m is None:
            self.depth_m = float(np.median([np.nanmedian(s.depth_m) for s in samples_with_depth(source)]))

    def depth(self, sample: Sample) -> np.ndarray:
        """The constant, float32 (H, W)."""
        return np.full(sample.photo.shape[:2], self.depth_m, dtype=np.float32)


class VerticalGradient(DepthMethod):
    """Disparity as a line over the height, `1 / depth = top + (bottom - top) * y`, one line for all photos.

    The line is fitted to the evaluated photos' own true depth, each photo counting the same: the row is about the most
    that position can do there.

    Args:
        argument: empty for least squares of the median disparity of `BANDS` bands; best for the smallest AbsRel.
        options: of no effect.
    """

    uses_truth = True

    def __init__(self, argument: str, options: MethodOptions) -> None:
        if argument not in ("", "best"):
            raise InputError(
                f"`method` must be vertical_gradient or vertical_gradient:best, got {argument!r} behind it."
            )
        self.is_best = argument == "best"

    def prepare(self, source: Source) -> None:
        """Fits the line."""
        if self.is_best:
            self.top_dpt, self.bottom_dpt = best_line(source, 1 / MAX_DEPTH_M)
            return
        heights, disparities, weights = [], [], []
        for sample in samples_with_depth(source):
            medians = [
                ((index + 0.5) / BANDS, 1 / float(np.nanmedian(band)))
                for index, band in enumerate(np.array_split(sample.depth_m, BANDS))
                if np.isfinite(band).any()
            ]
            heights += [y for y, _ in medians]
            disparities += [disparity for _, disparity in medians]
            weights += [len(medians) ** -0.5] * len(medians)
        slope, top = np.polyfit(heights, disparities, 1, w=weights)
        self.top_dpt, self.bottom_dpt = float(top), float(top + slope)

    def depth(self, sample: Sample) -> np.ndarray:
        """The line's depth, at most `MAX_DEPTH_M`, float32 (H, W)."""
        height, width = sample.photo.shape[:2]
        y = (np.arange(height) + 0.5) / height
        disparity = np.maximum(self.top_dpt + (self.bottom_dpt - self.top_dpt) * y, 1 / MAX_DEPTH_M)
        return np.repeat((1 / disparity).astype(np.float32)[:, None], width, axis=1)


# ---------------------------------------------------------------------- networks

STACKS = ("generated", "none", "sharp", "given", "rendered")
KEYS = {
    "depth_pro": "depth_metric",
    "zoedepth": "depth_metric",
    "glpn": "depth_metric",
    "dpt": "disparity_affine_invariant",
}
"""What models of one kind give. Depth Anything says it in its configuration."""


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
    if not (folder / "config.json").is_file() or (folder / "model_index.json").is_file():
        return load_pipeline(model, device=device, with_base=False)
    try:
        settings = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
        side_px = min(settings["size"].values())
        estimator = AutoModelForDepthEstimation.from_pretrained(folder, dtype=torch.float32).eval()
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"`model` must be a whole depth model, got {model} ({error}).") from error
    estimator.config.processing_resolution = side_px
    parts = ("scheduler", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "transformer")
    return BokehDepthPipeline(**dict.fromkeys(parts), bokeh_adapter=None, depth_estimator=estimator).to(device)


def middle_focus_m(depth_m: np.ndarray) -> float:
    """Depth of what is in the middle, where a camera focuses: 1 / the median disparity of the middle ninth, metres.

    Args:
        depth_m: float (H, W) without holes.
    """
    height, width = depth_m.shape
    return float(1 / np.median(1 / depth_m[height // 3 : -(height // 3), width // 3 : -(width // 3)]))


class Stage2(DepthMethod):
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

    def __init__(self, argument: str, options: MethodOptions) -> None:
        self.stack = argument or "generated"
        if self.stack not in STACKS:
            raise InputError(f"`method` must be stage2: and one of {', '.join(STACKS)}, got stage2:{argument}.")
        self.options, self.weights = options, options.model
        self.uses_truth = self.stack in ("given", "rendered")
        self.truth = Truth("", options)
        self.stage1: Stage1 | None = None
        if self.stack == "generated":
            maker = options.stack_model or options.model
            self.stage1 = Stage1("", replace(options, model=maker))
            self.weights = options.model if maker == options.model else f"{options.model}, stack {maker}"
        shares = self.stage1 is not None and options.stack_model is None
        self.pipeline = self.stage1.pipeline if shares else load_stage2(options.model, options.device)
        if self.pipeline.depth_estimator is None:
            raise InputError(f"`model` must have a Stage-2, which estimates depth, got {options.model}.")
        takes_camera = "intrinsics" in inspect.signature(self.pipeline.depth_estimator.forward).parameters
        self.uses_intrinsics = takes_camera and options.intrinsics == "given"

    def prepare(self, source: Source) -> None:
        """Prepares Stage-1 where it is used."""
        if self.stage1 is not None:
            self.stage1.prepare(source)

    def stack_of(self, sample: Sample) -> tuple[list[np.ndarray] | None, tuple[float, ...] | None]:
        """Frames and their K; InputError where the row's own stack or its depth is needed and there is none."""
        strengths = self.options.bokeh_strengths
        if self.stack == "none":
            return None, None
        if self.stack == "sharp":
            return [sample.photo] * len(strengths), strengths
        if self.stack == "given":
            if not sample.stack:
                raise InputError(f"`stack` must be in the row of sample {sample.sample_id!r}, got none.")
            return [f.picture for f in sample.stack], tuple(f.bokeh_strength for f in sample.stack)
        if self.stack == "generated":
            return list(self.stage1.frames(sample, strengths)), strengths
        depth_m = self.truth.depth(sample)
        focus_m = sample.focus_distance_m or middle_focus_m(depth_m)
        photo = np.ascontiguousarray(sample.photo, dtype=np.float32)
        return [render_from_depth(photo, depth_m, k, focus_m) for k in strengths], strengths

    def depth_of_stack(
        self, sample: Sample, stack: list[np.ndarray] | None, strengths: tuple[float, ...] | None
    ) -> np.ndarray:
        """Metres, float32 (H, W), from the photo and a stack of `stack_of`."""
        return self.pipeline.estimate_depth(
            sample.photo,
            stack=stack,
            bokeh_strengths=strengths,
            intrinsics=sample.intrinsics if self.uses_intrinsics else None,
            processing_resolution=self.options.processing_px,
        ).depth_m

    def depth(self, sample: Sample) -> np.ndarray:
        """Metres, float32 (H, W); InputError as `stack_of` says."""
        return self.depth_of_stack(sample, *self.stack_of(sample))


class TransformersDepth(DepthMethod):
    """Runs a depth model of the library transformers with its own processor, the way its page says.

    Args:
        argument: a repository or a folder of Depth Anything, Depth Pro, ZoeDepth, DPT, GLPN.
        options: device is used.

    Raises:
        InputError: the weights or a package that the processor needs cannot be had, or what the model gives is not
            known here.
    """

    def __init__(self, argument: str, options: MethodOptions) -> None:
        self.weights, self.device = argument, options.device
        try:
            self.model = AutoModelForDepthEstimation.from_pretrained(argument, dtype=torch.float32)
            self.processor = AutoImageProcessor.from_pretrained(argument)
        except (OSError, ValueError, ImportError) as error:
            reason = explain_hub_error(error, argument) or f"{type(error).__name__}: {error}"
            first = next((line.strip() for line in reason.splitlines() if line.strip()), reason)
            raise InputError(f"{argument or 'transformers:'} cannot be had: {first}") from error
        settings = self.model.config
        if settings.model_type == "depth_anything":
            relative = settings.depth_estimation_type == "relative"
            self.key = "disparity_affine_invariant" if relative else "depth_metric"
        elif settings.model_type in KEYS:
            self.key = KEYS[settings.model_type]
        else:
            known = ", ".join(["depth_anything", *KEYS])
            raise InputError(f"`method` must be a model of the kinds {known}, got {argument}, {settings.model_type}.")
        self.model = self.model.to(options.device).eval()

    @torch.inference_mode()
    def depth(self, sample: Sample) -> np.ndarray:
        """What the model gives, by its `key`, at the photo's size, float32 (H, W)."""
        picture = (sample.photo * 255).round().astype(np.uint8)
        inputs = self.processor(images=picture, return_tensors="pt").to(self.device)
        sizes = {"target_sizes": [picture.shape[:2]]}
        if self.model.config.model_type == "zoedepth":
            sizes["source_sizes"] = sizes["target_sizes"]
        depths = self.processor.post_process_depth_estimation(self.model(**inputs), **sizes)
        return depths[0]["predicted_depth"].float().cpu().numpy()


METHODS = {
    "truth": Truth,
    "constant": Constant,
    "vertical_gradient": VerticalGradient,
    "stage2": Stage2,
    "transformers": TransformersDepth,
}
"""Name to class, which takes the text behind the name's colon, "" where there is none, and options."""
