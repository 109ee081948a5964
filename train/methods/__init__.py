"""Methods as rows of one table. A new method is one file here and one line in `METHODS`.

A depth method gives a depth map of a photo and says what kind it is by its `key`; a bokeh method gives pictures at
stated bokeh strengths. Both see a `Sample`, whose truth only those use that say so in `uses_truth`. Weights that are
absent are an `InputError` when the method is made, never at the first photo.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from bokehdepth.camera.lens import DEFAULT_BOKEH_STRENGTHS
from bokehdepth.errors import InputError
from train.sources import Sample, Source


@dataclass(frozen=True)
class MethodOptions:
    """What the command line says to every method.

    Attributes:
        model: pipeline of our stages, as in `bokehdepth.hub`, or a folder that a trainer wrote.
        stack_model: the same for the Stage-1 that makes Stage-2's stacks; None takes `model`.
        device: where networks run.
        steps: denoising steps; None takes what suits the weights.
        bokeh_strengths: K of the stack that Stage-2 reads.
        processing_px: shorter side at work for depth; None takes what suits the weights.
        processing_area_px: pixels at work for Stage-1; None takes what suits the weights.
        restore: Stage-1's frames take the photo's own pixels where nothing is blurred.
        seed: of the noise, added to the sample's number.
        intrinsics: given, where a sample has them and the depth model takes them, or guessed by the model.
    """

    model: str = "embedded"
    stack_model: str | None = None
    device: str = "cpu"
    steps: int | None = None
    bokeh_strengths: tuple[float, ...] = DEFAULT_BOKEH_STRENGTHS
    processing_px: int | None = None
    processing_area_px: int | None = None
    restore: bool = True
    seed: int = 0
    intrinsics: Literal["given", "guessed"] = "guessed"


class Method(Protocol):
    """What both kinds have.

    Attributes:
        weights: what it runs on, for the header of a table; "none" where there are no weights.
        uses_truth: whether it looks at depth, targets or stacks that a user would not have.
        uses_intrinsics: whether the true intrinsics are given to it.
    """

    weights: str
    uses_truth: bool
    uses_intrinsics: bool

    def prepare(self, source: Source) -> None:
        """Looks at all samples before the first is done; InputError where the method cannot serve them."""


@runtime_checkable
class DepthMethod(Method, Protocol):
    """Gives depth.

    Attributes:
        key: one of `bokehdepth.metrics.DEPTH_KEYS`.
    """

    key: str

    def depth(self, sample: Sample) -> np.ndarray:
        """Depth or disparity of the photo, float32 (H, W)."""


@runtime_checkable
class BokehMethod(Method, Protocol):
    """Gives bokeh."""

    def frames(self, sample: Sample, bokeh_strengths: Sequence[float]) -> np.ndarray:
        """Pictures at ascending K, float32 (F, H, W, 3) in [0, 1]."""


METHODS = {
    "identity": "identity:Identity",
    "uniform_blur": "uniform_blur:UniformBlur",
    "render": "renderer:Renderer",
    "stage1": "stage1:Stage1",
    "kontext": "kontext:Kontext",
    "truth": "truth:Truth",
    "constant": "constant:Constant",
    "vertical_gradient": "vertical_gradient:VerticalGradient",
    "stage2": "stage2:Stage2",
    "transformers": "transformers_depth:TransformersDepth",
}
"""Name to file and class. The class takes the text behind the name's colon, "" where there is none, and options."""

PRESETS = {
    "depth_anything_v2": "transformers:depth-anything/Depth-Anything-V2-Small-hf",
    "depth_anything_v2_indoor": "transformers:depth-anything/Depth-Anything-V2-Metric-Indoor-Small-hf",
    "depth_anything_v2_outdoor": "transformers:depth-anything/Depth-Anything-V2-Metric-Outdoor-Small-hf",
    "depth_pro": "transformers:apple/DepthPro-hf",
    "zoedepth": "transformers:Intel/zoedepth-nyu-kitti",
    "stage2_no_stack": "stage2:none",
    "stage2_sharp": "stage2:sharp",
    "stage2_given": "stage2:given",
    "stage2_rendered": "stage2:rendered",
    "best_constant": "constant:best",
    "best_gradient": "vertical_gradient:best",
}
"""Short names."""


def make_method(name: str, options: MethodOptions) -> DepthMethod | BokehMethod:
    """Makes a method by its name.

    Args:
        name: `NAME` or `NAME:ARGUMENT`, as `render:stage2` or `transformers:user/repository`, or one of `PRESETS`.
        options: for every method.

    Raises:
        InputError: there is no such method, or what it needs is absent.
    """
    kind, _, argument = PRESETS.get(name, name).partition(":")
    if kind not in METHODS:
        raise InputError(f"method is {name!r}, wanted one of {', '.join([*METHODS, *PRESETS])}.")
    module, cls = METHODS[kind].split(":")
    return getattr(importlib.import_module(f"train.methods.{module}"), cls)(argument, options)


def refuse_argument(argument: str, name: str) -> None:
    """InputError where a method that takes no argument has one."""
    if argument:
        raise InputError(f"method is {name}:{argument}, wanted {name} without anything behind it.")
