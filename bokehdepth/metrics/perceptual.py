"""LPIPS and DISTS (Eq. 38, 39 of arXiv 2512.12425) through torchmetrics, which is loaded only when one is asked for.

Both compare features of networks that torchvision defines and whose weights are downloaded at first use; neither is
part of this project. Where any of it is missing the measure is refused by name.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

import numpy as np

from bokehdepth.errors import InputError
from bokehdepth.metrics.checks import checked_pictures

PERCEPTUAL = ("lpips", "dists")
_CLASSES = {
    "lpips": ("torchmetrics.image.lpip", "LearnedPerceptualImagePatchSimilarity"),
    "dists": ("torchmetrics.image.dists", "DeepImageStructureAndTextureSimilarity"),
}
_OPTIONS = {"lpips": {"net_type": "alex", "normalize": True}, "dists": {}}


def perceptual_distance(name: str) -> Callable[[np.ndarray, np.ndarray], float]:
    """Load a perceptual distance.

    Args:
        name: lpips (AlexNet, version 0.1) or dists (VGG-16).

    Returns:
        A function of ``(image, reference)``, both float ``(H, W, 3)`` in [0, 1], that gives the distance: 0 for equal
        pictures.

    Raises:
        InputError: If the name is another, torchmetrics or torchvision is not installed, or weights cannot be had.
    """
    if name not in PERCEPTUAL:
        raise InputError(f"name is {name!r}, wanted one of {PERCEPTUAL}")
    for package in ("torchmetrics", "torchvision"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise InputError(
                f"{name} needs the package {package}, which is not installed; wanted torchmetrics and torchvision"
            ) from error
    import torch

    module, kind = _CLASSES[name]
    try:
        measure = getattr(importlib.import_module(module), kind)(**_OPTIONS[name]).eval()
    except (OSError, RuntimeError, ImportError) as error:
        raise InputError(
            f"{name} needs weights that cannot be had ({type(error).__name__}: {error}); wanted a connection or a "
            "filled torch.hub cache"
        ) from error

    @torch.no_grad()
    def distance(image: np.ndarray, reference: np.ndarray) -> float:
        checked_pictures(reference, image=image)
        batch = [
            torch.from_numpy(np.ascontiguousarray(p, np.float32)).permute(2, 0, 1)[None] for p in (image, reference)
        ]
        measure.reset()
        return float(measure(*batch))

    return distance
