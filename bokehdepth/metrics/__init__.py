"""Error measures of depth, likeness of pictures, controls of a bokeh generator, and how sure a table is. No torch.

``depth``: AbsRel, SqRel, delta, RMSE and its log, the scale-invariant log error, boundary F1. ``pictures``: PSNR and
SSIM. ``perceptual``: LPIPS and DISTS, which load torch when asked for. ``controls``: selectivity and K response.
``blur_response``: the measured radius of a blur against K. ``protocols``: crops, caps and alignments by name.
``statistics``: intervals and tests clustered by scene.
"""

from bokehdepth.metrics.blur_response import BlurResponse, blur_response
from bokehdepth.metrics.controls import KResponse, Selectivity, k_response, selectivity
from bokehdepth.metrics.depth import (
    abs_rel,
    boundary_f1,
    delta,
    log10_error,
    median_scaled,
    rmse,
    rmse_log,
    si_log,
    sq_rel,
)
from bokehdepth.metrics.perceptual import PERCEPTUAL, perceptual_distance
from bokehdepth.metrics.pictures import psnr, ssim, to_linear
from bokehdepth.metrics.protocols import (
    DEPTH_KEYS,
    DEPTH_MEASURES,
    PROTOCOLS,
    DepthProtocol,
    aligned_depth_m,
    score_depth,
)
from bokehdepth.metrics.statistics import Interval, PairedTest, cluster_interval, paired_test

__all__ = [
    "BlurResponse",
    "DEPTH_KEYS",
    "DEPTH_MEASURES",
    "PERCEPTUAL",
    "PROTOCOLS",
    "DepthProtocol",
    "Interval",
    "KResponse",
    "PairedTest",
    "Selectivity",
    "abs_rel",
    "aligned_depth_m",
    "blur_response",
    "boundary_f1",
    "cluster_interval",
    "delta",
    "k_response",
    "log10_error",
    "median_scaled",
    "paired_test",
    "perceptual_distance",
    "psnr",
    "rmse",
    "rmse_log",
    "score_depth",
    "selectivity",
    "si_log",
    "sq_rel",
    "ssim",
    "to_linear",
]
