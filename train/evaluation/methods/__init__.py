"""Methods as rows of one table. A new method is one class in `depth.py` or `bokeh.py` and one line in its `METHODS`.

A depth method gives a depth map of a photo and says what kind it is by its `key`; a bokeh method gives pictures at
stated bokeh strengths. Both see a `Sample`, whose truth only those use that say so in `uses_truth`. Weights that are
absent are an `InputError` when the method is made, never at the first photo.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np

from bokehdepth.camera.lens import DEFAULT_BOKEH_STRENGTHS
from bokehdepth.errors import InputError
from train.evaluation.samples import Sample, Source


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


def add_method_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that `options_of` reads."""
    parser.add_argument("--model", default="embedded", help="of stage1 and stage2: a pipeline or a trainer's folder")
    parser.add_argument("--stack-model", help="Stage-1 that makes Stage-2's stacks; the same model where not given")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, help="denoising steps; what suits the weights where not given")
    parser.add_argument("--bokeh-strengths", type=float, nargs="+", default=[10.0, 20.0, 30.0], metavar="K")
    parser.add_argument("--processing-px", type=int, help="shorter side at work for depth")
    parser.add_argument("--processing-area-px", type=int, help="pixels at work for Stage-1")
    parser.add_argument(
        "--no-restore", dest="restore", action="store_false", help="Stage-1's frames as the network made them"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--intrinsics", choices=("given", "guessed"), default="guessed",
        help="whether depth models that take a camera get the true one where it is known, or guess (%(default)s)",
    )  # fmt: skip


def options_of(arguments: argparse.Namespace) -> MethodOptions:
    """The methods' options of a command line."""
    values = {field.name: getattr(arguments, field.name) for field in fields(MethodOptions)}
    return MethodOptions(**values | {"bokeh_strengths": tuple(arguments.bokeh_strengths)})


class Method:
    """What both kinds have.

    Attributes:
        weights: what it runs on, for the header of a table; "none" where there are no weights.
        uses_truth: whether it looks at depth, targets or stacks that a user would not have.
        uses_intrinsics: whether the true intrinsics are given to it.
    """

    weights = "none"
    uses_truth = False
    uses_intrinsics = False

    def prepare(self, source: Source) -> None:
        """Looks at all samples before the first is done; InputError where the method cannot serve them."""


class DepthMethod(Method):
    """Gives depth.

    Attributes:
        key: one of `protocols.ALIGNMENTS`.
    """

    key = "depth_metric"

    def depth(self, sample: Sample) -> np.ndarray:
        """Depth or disparity of the photo, float32 (H, W)."""
        raise NotImplementedError


class BokehMethod(Method):
    """Gives bokeh."""

    def frames(self, sample: Sample, bokeh_strengths: Sequence[float]) -> np.ndarray:
        """Pictures at ascending K, float32 (F, H, W, 3) in [0, 1]."""
        raise NotImplementedError


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


def method_names() -> list[str]:
    """Every name that `make_method` knows."""
    from train.evaluation.methods import bokeh, depth

    return [*bokeh.METHODS, *depth.METHODS, *PRESETS]


def make_method(name: str, options: MethodOptions) -> DepthMethod | BokehMethod:
    """Makes a method by its name.

    Args:
        name: `NAME` or `NAME:ARGUMENT`, as `render:stage2` or `transformers:user/repository`, or one of `PRESETS`.
        options: for every method.

    Raises:
        InputError: there is no such method, or what it needs is absent.
    """
    from train.evaluation.methods import bokeh, depth

    kind, colon, argument = PRESETS.get(name, name).partition(":")
    known = bokeh.METHODS | depth.METHODS
    if kind not in known:
        raise InputError(f"`method` must be one of {', '.join(method_names())}, got {name!r}.")
    if colon and kind in ("identity", "position_only", "stage1", "truth"):
        raise InputError(f"`method` must be {kind} without anything behind it, got {name!r}.")
    return known[kind](argument, options)


def number_of(argument: str, name: str, unit: str, least: float = 0.0) -> float | None:
    """The number behind a method's name, None where there is nothing; InputError where it is not `least` or more."""
    if not argument:
        return None
    try:
        number = float(argument)
    except ValueError:
        number = -1.0
    if not least <= number < np.inf:
        raise InputError(f"`method` must be {name}:{unit} with a number of {least:g} or more, got {name}:{argument}.")
    return number
