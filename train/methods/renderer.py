"""Our renderer on the depth of any metric depth method: `render:truth`, `render:stage2`, `render:depth_pro`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bokehdepth.errors import InputError
from bokehdepth.rendering.refocus import render_from_depth
from train.methods import DepthMethod, MethodOptions, make_method
from train.sources import Sample, Source


class Renderer:
    """Renders the photo through the stated lens with another method's depth; the focus distance is the stated one.

    Args:
        argument: name of the depth method.
        options: passed on to it.

    Raises:
        InputError: there is no such depth method, what it needs is absent, or its depth has no metres.
    """

    def __init__(self, argument: str, options: MethodOptions) -> None:
        if not argument:
            raise InputError("method is render, wanted render:METHOD with a depth method.")
        inner = make_method(argument, options)
        if not isinstance(inner, DepthMethod):
            raise InputError(f"method is render:{argument}, wanted a depth method behind render.")
        if inner.key != "depth_metric":
            raise InputError(
                f"method is render:{argument}, which gives {inner.key}; K per dioptre needs depth_metric."
            )
        self.inner = inner
        self.weights, self.uses_truth, self.uses_intrinsics = inner.weights, inner.uses_truth, inner.uses_intrinsics

    def prepare(self, source: Source) -> None:
        """Prepares the depth method."""
        self.inner.prepare(source)

    def frames(self, sample: Sample, bokeh_strengths: Sequence[float]) -> np.ndarray:
        """Rendered pictures, (F, H, W, 3); InputError where the sample has no focus distance."""
        if sample.focus_distance_m is None:
            raise InputError(f"sample {sample.sample_id!r} has no focus distance, wanted s1 in its row.")
        depth_m = np.asarray(self.inner.depth(sample), dtype=np.float32)
        photo = np.ascontiguousarray(sample.photo, dtype=np.float32)
        return np.stack([render_from_depth(photo, depth_m, k, sample.focus_distance_m) for k in bokeh_strengths])
