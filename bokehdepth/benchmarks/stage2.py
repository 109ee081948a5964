"""`bokehdepth bench stage2`: what depth from a bokeh stack costs, beside Depth Anything on the photo alone.

Two groups. *focus*: the step across frames of one DSFA block, all frames queried or the reference alone. *depth*:
photo and stack to a depth map. Classes are the true ones, weights random.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from bokehdepth.benchmarks import gates, models, timing
from bokehdepth.benchmarks.gates import Contender, compare
from bokehdepth.errors import InputError
from bokehdepth.modeling_bokehdepth import DividedSpaceFocusAttention

ALL_QUERIES, ONE_QUERY = "all frames queried", "reference queried"
SINGLE, RELEASED = "Depth Anything, photo alone", "released procedure"
DEEP, EARLY = "two deepest maps (default)", "two shallowest maps, stack stops there"
DEEP_WHOLE, EARLY_WHOLE = "two deepest, all queries", "two shallowest, stack goes on"
ONE, HALF_ONE = "shallowest map alone, stack stops there", "shallowest alone, stack at half *"
HALF_DEEP, HALF_EARLY = "two deepest, stack at half *", "two shallowest, stack at half *"
_PATCH_PX = 14
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}


def run(
    size_px: int = 196, frames: int = 4, device: str = "cpu", repeats: int = 3, true_size: bool = False
) -> dict[str, Any]:
    """Measure all contenders.

    Args:
        size_px: side of the square photo, a multiple of 14 from 28.
        frames: photo and stack together, 2 or more.
        device: where they run: float32 on the CPU, bfloat16 elsewhere.
        repeats: rounds; the median counts.
        true_size: ViT-L in place of a small backbone.

    Returns:
        `machine`, the arguments, and `groups`: "focus" and "depth", each with `rival` and `rows` as `gates.compare`
        gives them.

    Raises:
        InputError: a number is out of range.
    """
    if size_px < 2 * _PATCH_PX or size_px % _PATCH_PX:
        raise InputError(f"size_px is {size_px}, wanted a multiple of 14 from 28")
    if frames < 2:
        raise InputError(f"frames is {frames}, wanted 2 or more")
    place = torch.device(device)
    dtype = torch.float32 if place.type == "cpu" else torch.bfloat16
    with gates.one_thread(place):
        base = models.depth_anything(true_size, place, dtype)
        generator = torch.Generator(place).manual_seed(0)
        shape = (1, frames, 3, size_px, size_px)
        pixels = torch.randn(shape, generator=generator, device=place, dtype=dtype)
        strengths = torch.tensor([[0.0, *np.linspace(30 / (frames - 1), 30, frames - 1)]], dtype=torch.float32)
        bench = (base, pixels, strengths, repeats)
        groups = {"focus": _focus(*bench), "depth": _depth(*bench)}
    arguments = {"size_px": size_px, "frames": frames, "device": device, "true_size": true_size}
    return {"machine": timing.machine(device), **arguments, "dtype": str(dtype), "groups": groups}


def _focus(base: torch.nn.Module, pixels: torch.Tensor, strengths: torch.Tensor, repeats: int) -> dict[str, Any]:
    width, count = base.config.reassemble_hidden_size, (pixels.shape[-1] // _PATCH_PX) ** 2
    heads = 8 if width % 8 == 0 else 3
    block = DividedSpaceFocusAttention(width, heads, layerscale_init=0.1, use_space=False)
    block = models.randomize(block.to(pixels.device, pixels.dtype))
    tokens = torch.randn(1, pixels.shape[1], count, width, device=pixels.device, dtype=pixels.dtype)

    def step(reference_only: bool) -> Callable[[], torch.Tensor]:
        def run() -> torch.Tensor:
            with torch.no_grad():
                return block(tokens, strengths, None, reference_only)[:, :1]

        return run

    tolerance = 1e-5 if pixels.dtype == torch.float32 else _TOLERANCE[pixels.dtype]
    contenders = {
        ALL_QUERIES: Contender(step(False)),
        ONE_QUERY: Contender(step(True), ALL_QUERIES, tolerance),
    }
    rows = compare(contenders, ALL_QUERIES, repeats, pixels.device, pixels.dtype)
    return {"rival": ALL_QUERIES, "rows": rows, "reference_query_speedup": rows[0]["seconds"] / rows[1]["seconds"]}


def _depth(base: torch.nn.Module, pixels: torch.Tensor, strengths: torch.Tensor, repeats: int) -> dict[str, Any]:
    tolerance, last = _TOLERANCE[pixels.dtype], len(base.config.neck_hidden_sizes) - 1
    deep, early = (last - 1, last), (0, 1)

    def single() -> torch.Tensor:
        with torch.no_grad():
            return base(pixels[:, 0]).predicted_depth

    def ours(levels: tuple[int, ...], scale: float = 1.0, whole: bool = False) -> Callable[[], torch.Tensor]:
        model = models.with_dsfa(base, levels, scale)

        def run() -> torch.Tensor:
            with torch.no_grad():
                # Asked for all layers' states the backbone runs all frames to its end.
                return model(pixels, strengths, output_hidden_states=whole).predicted_depth

        return run

    contenders = {
        SINGLE: Contender(single),
        DEEP: Contender(ours(deep)),
        RELEASED: Contender(_released(models.with_dsfa(base, deep), pixels, strengths), DEEP, tolerance),
        EARLY_WHOLE: Contender(ours(early, whole=True)),
        EARLY: Contender(ours(early), EARLY_WHOLE, tolerance),
        ONE: Contender(ours(early[:1])),
        HALF_DEEP: Contender(ours(deep, 0.5), DEEP),
        HALF_EARLY: Contender(ours(early, 0.5), EARLY),
        HALF_ONE: Contender(ours(early[:1], 0.5), ONE),
    }
    return {"rival": SINGLE, "rows": compare(contenders, SINGLE, repeats, pixels.device, pixels.dtype)}


def _released(model: torch.nn.Module, pixels: torch.Tensor, strengths: torch.Tensor) -> Callable[[], torch.Tensor]:
    """The released procedure: each frame by itself through the backbone, and all frames queried in DSFA."""

    def run() -> torch.Tensor:
        with torch.no_grad():
            each = [model.backbone(frame).feature_maps for frame in pixels[0].split(1)]
            maps = [torch.cat(level).unsqueeze(0) for level in zip(*each, strict=True)]
            fused = [level[:, 0] for level in maps]
            for level, block in model.dsfa.items():
                tokens = maps[int(level)]
                refined = block(tokens[:, :, 1:], strengths)[:, 0]
                fused[int(level)] = torch.cat([tokens[:, 0, :1], refined], dim=1)
            grid = 2 * (pixels.shape[-1] // _PATCH_PX,)
            return model.head(model.neck(fused, *grid), *grid)

    return run


def as_text(result: dict[str, Any]) -> str:
    """Lay a result of `run` out as tables, one for each group."""
    size = "ViT-L" if result["true_size"] else "small size"
    described = f"{result['device']}, {size}, {result['size_px']} px, {result['frames']} frames"
    return gates.as_text(result, described)
