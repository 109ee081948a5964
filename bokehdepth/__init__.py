"""BokehDepth: a calibrated bokeh stack and a metric depth map from one photo (arXiv 2512.12425).

Importing the package loads no torch; the public names below are imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "BokehAdapter": "modeling_bokeh_adapter",
    "BokehDepthAnythingConfig": "modeling_bokehdepth",
    "BokehDepthAnythingForDepthEstimation": "modeling_bokehdepth",
    "BokehDepthAnythingV2Config": "modeling_bokehdepth_dav2",
    "BokehDepthAnythingV2ForDepthEstimation": "modeling_bokehdepth_dav2",
    "BokehDepthEfficientNetConfig": "modeling_bokehdepth_efficientnet",
    "BokehDepthEfficientNetForDepthEstimation": "modeling_bokehdepth_efficientnet",
    "BokehDepthOutput": "processing_bokehdepth",
    "BokehDepthPipeline": "pipeline_bokehdepth",
    "BokehDepthUniDepthConfig": "modeling_bokehdepth_unidepth",
    "BokehDepthUniDepthForDepthEstimation": "modeling_bokehdepth_unidepth",
    "BokehStackOutput": "processing_bokehdepth",
    "DividedSpaceFocusAttention": "modeling_bokehdepth",
    "InputError": "errors",
}

__all__ = [
    "BokehAdapter",
    "BokehDepthAnythingConfig",
    "BokehDepthAnythingForDepthEstimation",
    "BokehDepthAnythingV2Config",
    "BokehDepthAnythingV2ForDepthEstimation",
    "BokehDepthEfficientNetConfig",
    "BokehDepthEfficientNetForDepthEstimation",
    "BokehDepthOutput",
    "BokehDepthPipeline",
    "BokehDepthUniDepthConfig",
    "BokehDepthUniDepthForDepthEstimation",
    "BokehStackOutput",
    "DividedSpaceFocusAttention",
    "InputError",
    "__version__",
]

if TYPE_CHECKING:
    from .errors import InputError
    from .modeling_bokeh_adapter import BokehAdapter
    from .modeling_bokehdepth import (
        BokehDepthAnythingConfig,
        BokehDepthAnythingForDepthEstimation,
        DividedSpaceFocusAttention,
    )
    from .modeling_bokehdepth_dav2 import BokehDepthAnythingV2Config, BokehDepthAnythingV2ForDepthEstimation
    from .modeling_bokehdepth_efficientnet import (
        BokehDepthEfficientNetConfig,
        BokehDepthEfficientNetForDepthEstimation,
    )
    from .modeling_bokehdepth_unidepth import BokehDepthUniDepthConfig, BokehDepthUniDepthForDepthEstimation
    from .pipeline_bokehdepth import BokehDepthPipeline
    from .processing_bokehdepth import BokehDepthOutput, BokehStackOutput


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
